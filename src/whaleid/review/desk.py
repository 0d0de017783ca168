"""The review of one competition: its pairs, the file of decisions, the pictures. Safe to use from several threads."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from whaleid.data.images import prepare
from whaleid.data.reviews import (
    ANSWERS,
    TAKEN_BACK,
    Review,
    append_review,
    now,
    read_reviews,
    require_consistent,
    standing,
)
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import described_size, read_described
from whaleid.local_matching.matchers import matcher_of
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.report.inputs import Results
from whaleid.report.thumbnails import box_of, fit_size
from whaleid.review.pairs import KINDS, Pair
from whaleid.utils.errors import WhaleidError

VIEW = (900, 700)
"""Largest width and height of a picture, in pixels: two of them fill a wide screen."""
_QUALITY = 88  # of its JPEG: about 100 kB
_KEPT = 64  # JPEGs in memory


class Desk:
    """Serves pairs with what has been decided since, and keeps decisions.

    Parameters
    ----------
    results : Results
    pairs : list of Pair
        As from `find_pairs`; a pair is known by its place.
    path : Path
        reviews.csv.
    who : str
        Name of the person who decides.
    """

    def __init__(self, results: Results, pairs: list[Pair], path: Path, who: str) -> None:
        self.images, self.project = results.images, results.project
        self.pairs, self.path, self.who = pairs, path, who
        self.names = [self._names(pair) for pair in pairs]
        self._matching = Lock()  # networks that match keypoints are not made for threads
        self._jpeg = lru_cache(_KEPT)(self._draw)
        self._local = self.project.local_matching
        folder = keypoints_folder(self.project)
        self._described = None
        if self._local is not None and folder is not None and folder.is_dir():
            self._described = read_described(folder, self.images, self._local.features)
            self._matcher = matcher_of(self._described, self.images, self._local, self.project.settings.weights)

    def state(self) -> dict[str, Any]:
        """All that the page shows, as JSON values.

        Of the pairs of one image that are not decided only the first is served, and none once the image was decided to
        be the same as another; but all pairs of two clusters.
        """
        reviews = read_reviews(self.path)
        decided: dict[tuple[str, str], list[Review]] = {}
        for review in standing(reviews):
            decided.setdefault(review.pair, []).append(review)
        served, closed = [], set()
        for number, names in enumerate(self.names):
            answers = decided.get(names, [])
            pair = self.pairs[number]
            query = number + len(self.images) if pair.kind == "cluster" else pair.query
            if answers or query not in closed:
                served.append(self._pair_json(number, answers))
            if not answers or any(answer.same == "yes" for answer in answers):
                closed.add(query)
        return {"who": self.who, "kinds": KINDS, "pairs": served, "contradiction": self._contradiction(reviews)}

    def decide(self, number: int, same: str) -> dict[str, Any]:
        """Keep a decision on a pair; returns the new state. Raises WhaleidError for a wrong answer or number."""
        if not 0 <= number < len(self.pairs) or same not in ANSWERS:
            raise WhaleidError(f"no pair {number} to be decided '{same}'; reload the page")
        query, other = (str(self.images["image"][row]) for row in (self.pairs[number].query, self.pairs[number].other))
        append_review(self.path, Review(query, other, same, now(), self.who))
        return self.state()

    def undo(self) -> dict[str, Any]:
        """Take this person's last decision back; returns the new state, `at` the pair that it was about."""
        own = [review for review in standing(read_reviews(self.path)) if review.who == self.who]
        if not own:
            return self.state()
        last = own[-1]
        append_review(self.path, Review(last.image, last.other, TAKEN_BACK, now(), self.who))
        at = self.names.index(last.pair) if last.pair in self.names else None
        return {**self.state(), "at": at}

    def picture(self, row: int) -> bytes:
        """JPEG of an image, cut to its box."""
        if not 0 <= row < len(self.images):
            raise WhaleidError(f"no image {row}; reload the page")
        return self._jpeg(row)

    def matches(self, number: int) -> list[list[float]]:
        """The matched keypoints that agree in geometry: x, y in the query and x, y in the other image, as shares.

        Empty where the recipe has no local matching.
        """
        if self._described is None or self._local is None or not 0 <= number < len(self.pairs):
            return []
        rows = self.pairs[number].query, self.pairs[number].other
        with self._matching:
            *points, verified = matched_keypoints(self._described, *rows, self._local, self._matcher)
        sizes = [described_size(box_of(self.images, row), self._local.size) for row in rows]
        shares = [(found + 0.5) / size for found, size in zip(points, sizes, strict=True)]  # integers are centres
        return np.hstack(shares)[verified].round(4).tolist()

    def lines(self) -> list[str]:
        """A line for each pair that is served, with its reason and what was decided."""
        shown = []
        for pair in self.state()["pairs"]:
            answers = "".join(f"; same: {answer['same']} ({answer['who']})" for answer in pair["answers"])
            shown.append(f"{pair['kind']:<5}  {pair['image']}  {pair['other']}  {pair['reason']}{answers}")
        return shown

    def _contradiction(self, reviews: list[Review]) -> str:
        try:
            require_consistent(reviews, self.path.name)
        except WhaleidError as error:
            return str(error)
        return ""

    def _names(self, pair: Pair) -> tuple[str, str]:
        """Names of both images, sorted."""
        query, other = sorted(str(self.images["image"][row]) for row in (pair.query, pair.other))
        return query, other

    def _pair_json(self, number: int, answers: list[Review]) -> dict[str, Any]:
        pair, images = self.pairs[number], self.images
        label = images["identity"][pair.query] if images["split"][pair.query] == "train" else None
        return {
            "id": number,
            "kind": pair.kind,
            "reason": pair.reason,
            "rows": [pair.query, pair.other],
            "image": str(images["image"][pair.query]),
            "other": str(images["image"][pair.other]),
            "label": label,
            "identity": pair.identity,
            "answers": [{"same": answer.same, "who": answer.who, "when": answer.when} for answer in answers],
        }

    def _draw(self, row: int) -> bytes:
        box = box_of(self.images, row)
        shown = prepare(self.project.competition.root / self.images["path"][row], box, 0.0, fit_size(box, VIEW))
        file = io.BytesIO()
        Image.fromarray(shown).save(file, format="JPEG", quality=_QUALITY)
        return file.getvalue()
