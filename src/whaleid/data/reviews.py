"""`reviews.csv`: what people decided of pairs of images, a row for each decision: `image, other, same, when, who`.

Rows are only ever added. Of the rows of one person on one pair the last one counts; one whose `same` is empty takes
the decisions before it back. A row is whole when its line has ended, so that a write which was cut short is known.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from whaleid.config import Competition
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path
from whaleid.utils.locks import locked

COLUMNS = ("image", "other", "same", "when", "who")
ANSWERS = ("yes", "no", "unsure")
TAKEN_BACK = ""
_HEADER = ",".join(COLUMNS) + "\n"


@dataclass(frozen=True)
class Review:
    """One row.

    Attributes
    ----------
    image, other : str
        Names of two images, in either order.
    same : str
        Whether they show one individual: one of ANSWERS, or TAKEN_BACK.
    when : str
        ISO 8601, with the time zone.
    who : str
    """

    image: str
    other: str
    same: str
    when: str
    who: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both names, sorted."""
        return (self.image, self.other) if self.image < self.other else (self.other, self.image)

    def __str__(self) -> str:
        sign = {"yes": "=", "no": "!="}.get(self.same, "?")
        return f"{self.image} {sign} {self.other} ({self.who})"


@dataclass(frozen=True)
class Links:
    """Pairs of images that are known to show one individual, and to show two; each pair once, names sorted."""

    must: tuple[tuple[str, str], ...] = ()
    cannot: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.must) + len(self.cannot)

    def without(self, images: Collection[str]) -> Links:
        """The links that touch none of some images."""
        kept = ([pair for pair in pairs if not set(pair) & set(images)] for pairs in (self.must, self.cannot))
        return Links(*map(tuple, kept))


# ------------------------------------------------------------------------------------------------------ the file


def reviews_path(competition: Competition) -> Path:
    """The competition's file of decisions, which need not be there yet. Raises WhaleidError where it names none."""
    if competition.reviews is None:
        raise WhaleidError(
            f"competition {competition.name} names no file for decisions: add `reviews: reviews.csv` to its YAML"
        )
    return competition.root / competition.reviews


def read_reviews(path: Path) -> list[Review]:
    """All rows in their order; none where there is no file. A last row that was cut short is left out.

    Raises
    ------
    WhaleidError
        For a file that is not such a table; the line names its first wrong row.
    """
    if not path.is_file():
        return []
    whole, _ = _split_torn(path.read_bytes())
    try:
        return _parsed(whole)
    except (ValueError, csv.Error) as error:
        raise WhaleidError(f"{path}: {error}; correct the file") from error


def append_review(path: Path, review: Review) -> None:
    """Add a row, after repairing the file's end; the row is on the disk when this returns.

    Any number of processes and threads may add rows at once.
    """
    try:
        _checked(list(astuple(review)))
    except ValueError as error:
        raise WhaleidError(f"{path}: {error}; the decision was not kept") from error
    with locked(path.with_name(f".{path.name}.lock")):
        _repair(path)
        with path.open("ab") as file:
            file.write(_rows_text([review]).encode())
            file.flush()
            os.fsync(file.fileno())


def repair_reviews(path: Path) -> str:
    """Make the file where there is none, and take out a last row that was cut short: returns what was taken out."""
    with locked(path.with_name(f".{path.name}.lock")):
        return _repair(path)


def merge_reviews(paths: Sequence[Path], out: Path) -> int:
    """Write all rows of several files in the order of their times, equal rows once; returns their number.

    Raises
    ------
    WhaleidError
        If a file is missing or wrong, decisions contradict, or `out` is there and not one of `paths`.
    """
    for path in paths:
        if not path.is_file():
            raise WhaleidError(f"{path}: file not found; check the path")
    if out.exists() and out.resolve() not in [path.resolve() for path in paths]:
        raise WhaleidError(f"{out}: is there already; name it among the files to merge, or another file with -o")
    with locked(out.with_name(f".{out.name}.lock")):
        rows = list(dict.fromkeys(review for path in paths for review in read_reviews(path)))
        rows.sort(key=lambda review: datetime.fromisoformat(review.when))
        require_consistent(rows, " + ".join(map(str, paths)))
        with atomic_path(out) as temporary:
            temporary.write_text(_HEADER + _rows_text(rows))
    return len(rows)


def now() -> str:
    """The time as a row holds it."""
    return datetime.now(UTC).isoformat()


def _repair(path: Path) -> str:
    """As `repair_reviews`; the caller holds the lock."""
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(_HEADER)
        return ""
    content = path.read_bytes()
    whole, torn = _split_torn(content)
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(content) - len(torn))
            file.seek(0, os.SEEK_END)
            file.write(whole[len(content) - len(torn) :])
            os.fsync(file.fileno())
    return torn.decode(errors="replace")


def _split_torn(content: bytes) -> tuple[bytes, bytes]:
    """A file's whole rows, and what a write that was cut short left behind them.

    A last line that lacks nothing but its end, as some editors leave it, is a whole row: cells are written in quotes,
    so that no shorter part of a row reads as one.
    """
    if not content:
        return _HEADER.encode(), b""
    start = content.rfind(b"\n") + 1
    last = content[start:]
    if not last:
        return content, b""
    try:
        if start:
            _parsed(_HEADER.encode() + last)
    except (ValueError, csv.Error):
        return content[:start], last
    return content + b"\n", b""


def _rows_text(reviews: Iterable[Review]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(map(astuple, reviews))
    return text.getvalue()


def _parsed(content: bytes) -> list[Review]:
    """The rows. Raises ValueError or csv.Error for the first wrong one."""
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(reader, [])
    if tuple(header) != COLUMNS:
        raise ValueError(f"row 1 is {','.join(header)!r}, and must be {','.join(COLUMNS)!r}")
    rows = []
    for cells in reader:
        try:
            rows += [_checked(cells)] if cells else []
        except ValueError as error:
            raise ValueError(f"row {reader.line_num}: {error}") from error
    return rows


def _checked(cells: list[str]) -> Review:
    """A row's cells as a Review. Raises ValueError where they are none."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells in place of {len(COLUMNS)}")
    review = Review(*cells)
    if not review.image or not review.other or review.image == review.other:
        raise ValueError(f"'{review.image}' and '{review.other}' are not two images")
    if review.same not in (*ANSWERS, TAKEN_BACK):
        raise ValueError(f"same is '{review.same}', and must be {', '.join(ANSWERS)}, or empty to take back")
    if any(mark in cell for cell in cells for mark in "\r\n\0"):
        raise ValueError("a cell holds a line break")
    if not review.who or '"' in review.who:
        raise ValueError(f"who is '{review.who}', and must be a name without quotation marks")
    if datetime.fromisoformat(review.when).tzinfo is None:
        raise ValueError(f"when is '{review.when}', without a time zone (2026-05-04T12:00:00+00:00)")
    return review


# ------------------------------------------------------------------------------------------------- what they say


def standing(reviews: Iterable[Review]) -> list[Review]:
    """The last row of each person on each pair, in the order of the rows, without those that were taken back."""
    last: dict[tuple[tuple[str, str], str], Review] = {}
    for review in reviews:
        last.pop((review.pair, review.who), None)
        last[review.pair, review.who] = review
    return [review for review in last.values() if review.same != TAKEN_BACK]


def links_of(reviews: Iterable[Review]) -> Links:
    """The pairs that anybody decided."""
    decided = standing(reviews)
    must, cannot = (sorted({review.pair for review in decided if review.same == answer}) for answer in ("yes", "no"))
    return Links(tuple(must), tuple(cannot))


def read_links(competition: Competition) -> Links:
    """The competition's links; none where it names no file or the file is not there yet.

    Raises
    ------
    WhaleidError
        For a wrong file, and for contradictory decisions.
    """
    if competition.reviews is None:
        return Links()
    path = reviews_path(competition)
    reviews = read_reviews(path)
    require_consistent(reviews, str(path))
    return links_of(reviews)


def require_consistent(reviews: Iterable[Review], place: str) -> None:
    """Raise WhaleidError where decisions contradict one another. place: of the file, for the line."""
    chain = find_contradiction(reviews)
    if chain:
        *same, different = map(str, chain)
        raise WhaleidError(
            f"{place}: contradictory decisions: {', '.join(same)}, but {different}; look at these pairs again and take "
            "one decision back (whaleid review)"
        )


def find_contradiction(reviews: Iterable[Review]) -> list[Review]:
    """The shortest chain of images decided the same whose ends were decided different, and that decision last.

    Empty where there is none.
    """
    decided = standing(reviews)
    tied: dict[str, list[Review]] = {}
    for review in decided:
        if review.same == "yes":
            for image in review.pair:
                tied.setdefault(image, []).append(review)
    chains = ((_chain(tied, *review.pair), review) for review in decided if review.same == "no")
    found = [[*chain, review] for chain, review in chains if chain]
    return min(found, key=len, default=[])


def _chain(tied: dict[str, list[Review]], start: str, end: str) -> list[Review]:
    """The fewest decisions that tie two images, breadth first; empty where none do."""
    paths: dict[str, list[Review]] = {start: []}
    waiting = [start]
    for image in waiting:
        for review in tied.get(image, []):
            other = review.pair[review.pair[0] == image]
            if other not in paths:
                paths[other] = [*paths[image], review]
                waiting.append(other)
    return paths.get(end, [])
