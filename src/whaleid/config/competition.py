"""A competition: where its images, labels and the form of its submission come from."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, model_validator

from whaleid.config.base import Model, Positive, Share

FIELD = re.compile(r"\{([^{}\[\]]+)(?:\[(\d+)\])?\}")
"""A column, or one character of it, in the pattern of a file: `{chain}`, `{id[0]}`."""
LABEL_SEPARATORS = r"[,;\s]"
"""What a label cannot hold: guesses are separated by a space, and readers split them at commas and semicolons too."""

RANKED_IMAGES = 100
"""Labelled images that the form ranked_images ranks for each query."""


class Table(Model):
    """A CSV of images: which columns hold what, and the folder of the image files."""

    csv: str
    """Path of the file, relative to the root."""
    images: str
    """Folder of the image files, relative to the root."""
    image: str
    """Column of the images' names."""
    identity: str | None = None
    """Column of the identities; null for a table of test images."""
    extra: dict[str, str] = {}
    """More columns to keep: name in images.parquet -> column of the CSV (happywhale: species)."""
    suffix: str = ""
    """Appended to an image's name to get its file, for example `.jpg` where the CSV leaves it out."""
    file: str | None = None
    """Pattern of the image files, where names do not say them: `{path}`, `{chain}/{image}`, `{id[0]}/{id}.jpg` (`[0]`:
    the first character). null: the image's name and `suffix`."""
    where: dict[str, str | list[str]] = {}
    """Column of the CSV -> value, or list of values, of the rows that belong to this table; the others are skipped."""

    @model_validator(mode="after")
    def _check(self) -> Table:
        if self.file is None:
            return self
        if self.suffix:
            raise ValueError("file and suffix are both set: write the suffix into file and remove suffix")
        if not FIELD.search(self.file) or set(FIELD.sub("", self.file)) & set("{}"):
            raise ValueError(f"file '{self.file}' is no pattern: columns stand in braces, as in {{path}} or {{id[0]}}")
        return self


class Submission(Model):
    """The submission: a column of images, and one of their guesses separated by spaces."""

    sample: str | None = None
    """CSV whose columns, rows and order the submission has; null: the test table's CSV, where it has two columns and
    the first is that of the images."""
    image: str | None = None
    """Column of the images' names; null: the sample's, or without one the test table's."""
    identities: str | None = None
    """Column of the guesses; null: the sample's, or without one that of the identities."""


class PairColumns(Model):
    """Pairs of test images that are asked about, a row of the test CSV each; its image column holds the first image."""

    row: str
    """Column of the row's name, which the submission repeats."""
    other: str
    """Column of the second image."""


REVIEWED = ("topk", "clusters")
"""Forms of answer that people's decisions change."""


class Answer(Model):
    """What is submitted."""

    form: str = "topk"
    """Name of a form of answer: topk, one_or_unknown, one_confident, ranked_images, pairs, clusters."""
    dataset: str | None = None
    """Name in `train.extra` and `test.extra` of a column that divides images, metric and thresholds as `species` does,
    where the organisers score data sets."""
    pairs: PairColumns | None = None
    """The pairs that the form pairs answers; the test CSV then names an image in many rows."""


class Competition(Model):
    """One competition. Paths are relative to `root`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the folder under `work/`."""
    root: Path
    """Folder of the data."""
    train: Table
    test: Table | None = None
    submission: Submission = Submission()
    answer: Answer = Answer()
    unknown: str | None = None
    """Label of identities that the training data does not hold (`new_whale`); null: there are none."""
    unknown_share: Share | None = None
    """Share of unknown queries expected in the test set; null: not known, so that thresholds lose as little as can be
    whatever it is (0 to 60 %). Labelled images of the unknown label raise the lower end."""
    k: Positive = 5
    """Number of guesses that count."""
    boxes: str | None = None
    """Boxes around the animals, in pixels or all as shares of the sides: a CSV with `image, x0, y0, x1, y1`, or
    `x, y, w, h`, or `bbox` (`[x, y, w, h]`); or the JSON of COCO or MegaDetector. Images without one are used whole."""
    masks: str | None = None
    """Folder of masks: `x/a.png` for the image `x/a.jpg`, of the same size, white where the animal is (`whaleid masks`
    makes some). Local matching takes keypoints from the white part only."""
    solution: str | None = None
    """CSV of the test images' identities; read by `score` and `report` only."""
    reviews: str | None = None
    """CSV of what people decided of pairs of images (`whaleid review`); made with the first decision. It changes the
    answers to test images, and pseudo-labels."""
    rename_values: dict[str, dict[str, str]] = {}
    """Corrections of the data: column of images.parquet -> wrong value -> right value."""
    group: str | None = None
    """Name in `train.extra` of a column whose equal values must share a fold (an encounter, a burst of photographs)."""
    group_is_individual: bool = False
    """Whether images of one `group` show one individual: in the form clusters, test images of one value are one
    cluster."""
    species: str | None = None
    """Name in `train.extra` and `test.extra` of a column. Images of two species are never compared; thresholds of the
    unknown label and scores are also those of each species. A test image without value is compared with all."""
    view: str | None = None
    """Name in `train.extra` and `test.extra` of a column of what an image shows (left, right). Images of two views are
    never compared; one without value is compared with all."""
    find_copies: bool = True
    """Whether images that look like copies of one photograph (inside their boxes) share a fold; false: equal files
    alone. Turn it off where different animals are taken for copies."""
    outside_links: bool = False
    """Whether links may lead out of the root, for instance to a store of images; otherwise they are refused."""
    kaggle: str | None = None
    """Name of the competition on Kaggle, from which `whaleid data download` gets it."""

    @property
    def species_column(self) -> str | None:
        """The column whose values divide galleries, thresholds and scores: `species`, or the form's data set."""
        return self.species or self.answer.dataset

    @model_validator(mode="after")
    def _check(self) -> Competition:
        if self.train.identity is None:
            raise ValueError("train.identity is missing: name the CSV column that holds the identity")
        if self.group is not None and self.group not in self.train.extra:
            raise ValueError(f"group '{self.group}' is not among train.extra: {sorted(self.train.extra)}")
        if self.group_is_individual and (self.group is None or self.test is None or self.group not in self.test.extra):
            raise ValueError("group_is_individual needs a group, which is also in test.extra")
        if self.unknown is not None and re.search(LABEL_SEPARATORS, self.unknown):
            raise ValueError(f"unknown '{self.unknown}' holds a space, comma or semicolon, which separate guesses")
        if self.unknown is None and self.unknown_share:
            raise ValueError("unknown_share is set but unknown is null: name the unknown label or remove the share")
        return self

    @model_validator(mode="after")
    def _check_answer(self) -> Competition:
        columns = {"answer.dataset": self.answer.dataset, "species": self.species, "view": self.view}
        for split, table in (("train", self.train), ("test", self.test)):
            for key, column in columns.items():
                if column is not None and table is not None and column not in table.extra:
                    raise ValueError(f"{key} '{column}' is not among {split}.extra: {sorted(table.extra)}")
        if self.species is not None and self.answer.dataset is not None:
            raise ValueError("species and answer.dataset both divide the images: keep one")
        if self.answer.form == "ranked_images" and self.k != RANKED_IMAGES:
            raise ValueError(f"answer.form ranked_images ranks {RANKED_IMAGES} images: set k to {RANKED_IMAGES}")
        if (self.answer.form == "pairs") != (self.answer.pairs is not None):
            raise ValueError("answer.pairs (the columns of the pairs) and answer.form pairs go together")
        if self.unknown is None and self.answer.form == "one_or_unknown":
            raise ValueError("answer.form one_or_unknown needs the unknown label: set unknown")
        if self.reviews is not None and self.answer.form not in REVIEWED:
            raise ValueError(f"reviews change no answer of the form {self.answer.form}; remove reviews")
        return self
