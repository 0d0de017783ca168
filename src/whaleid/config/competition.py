"""A competition: where images, labels and the submission's form come from."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from whaleid.config.base import Model, Positive, Share


class Table(Model):
    """A CSV of images: which columns hold what, and the folder that holds the pictures."""

    csv: str
    images: str
    image: str
    identity: str | None = None
    extra: dict[str, str] = {}
    """Further columns to keep: name in images.parquet -> column of the CSV (happywhale: species)."""
    suffix: str = ""
    """Appended to the image's name to get its file, where the CSV leaves out `.jpg`."""


class Submission(Model):
    """The submission's columns: the image, and its guesses joined by spaces."""

    image: str
    identities: str


class Competition(Model):
    """Where images, labels and the submission's form come from (design: *A competition*)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    root: Path
    train: Table
    test: Table | None = None
    submission: Submission = Submission(image="Image", identities="Id")
    unknown: str | None = None
    unknown_share: Share | None = None
    k: Positive = 5
    boxes: str | None = None
    masks: str | None = None
    """Folder of masks: for `x/a.jpg` of a table's images a PNG `x/a.png` of the same size, white where the animal is.
    Local matching looks for keypoints nowhere else."""
    solution: str | None = None
    mend: dict[str, dict[str, str]] = {}
    """Spelling mistakes of the data: column of images.parquet -> wrong value -> right value."""
    group: str | None = None
    """Name in `train.extra` of a column whose equal values must share a fold (an encounter, a burst)."""
    kaggle: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Competition:
        if self.train.identity is None:
            raise ValueError("train.identity is missing: name the CSV column that holds the identity")
        if self.group is not None and self.group not in self.train.extra:
            raise ValueError(f"group '{self.group}' is not among train.extra: {sorted(self.train.extra)}")
        if self.unknown is None and self.unknown_share:
            raise ValueError("unknown_share is set but unknown is null: name the unknown label or drop the share")
        return self
