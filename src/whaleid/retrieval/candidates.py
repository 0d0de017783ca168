"""Candidates: for each query its best identities with scores, as arrays and as the table on disk.

This short list is what every later stage reads: blend, stack, unknown identity, submission. `identities.py` makes it
from similar images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path


@dataclass(frozen=True)
class Candidates:
    """The best identities of each query, best first; checked when made.

    Attributes
    ----------
    queries : str array, shape (q,)
        Distinct image names.
    classes : str array, shape (c,)
        Distinct identities.
    codes : int64 array, shape (q, m)
        Positions in `classes`, distinct within a row; -1 = padding, only at a row's end.
    scores : float32 array, shape (q, m)
        Descending along a row, finite; -inf exactly where padded.
    """

    queries: np.ndarray
    classes: np.ndarray
    codes: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        _check_tables(self)
        _check_rows(self)

    def __len__(self) -> int:
        return len(self.queries)


def _check_tables(candidates: Candidates) -> None:
    """Shapes, types and names."""
    codes, scores = candidates.codes, candidates.scores
    if codes.ndim != 2 or codes.shape != scores.shape or len(codes) != len(candidates.queries):
        raise WhaleidError(
            f"candidates: codes {codes.shape} and scores {scores.shape} "
            f"do not fit {len(candidates.queries)} queries; all need one row a query"
        )
    if codes.dtype != np.int64 or scores.dtype != np.float32:
        raise WhaleidError(f"candidates: codes {codes.dtype}, scores {scores.dtype}; int64, float32 are needed")
    for name, values in (("queries", candidates.queries), ("classes", candidates.classes)):
        if values.ndim != 1 or len(np.unique(values)) < len(values):
            raise WhaleidError(f"candidates: {name} must be one row of distinct names")


def _check_rows(candidates: Candidates) -> None:
    """Rules for each row of codes and scores; an error names the first query that breaks one."""
    codes, scores = candidates.codes, candidates.scores
    padded = codes == PADDING
    in_order = np.sort(codes, axis=1)
    finite = np.where(padded, scores == -np.inf, np.isfinite(scores))
    repeated = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != PADDING)
    rules = (
        ((codes < PADDING) | (codes >= len(candidates.classes)), f"a code outside -1..{len(candidates.classes) - 1}"),
        (padded[:, :-1] & ~padded[:, 1:], "padding before a candidate"),
        (repeated, "an identity twice"),
        (~finite, "a score not finite, or padding without -inf"),
        (scores[:, 1:] > scores[:, :-1], "ascending scores"),
    )
    for broken, problem in rules:
        rows = np.flatnonzero(broken.any(axis=1))
        if len(rows):
            raise WhaleidError(
                f"candidates: query {candidates.queries[rows[0]]!s} (row {rows[0]}) has {problem}; "
                f"{len(rows)} of {len(codes)} queries do"
            )


# -------------------------------------------------------------------------------------------------- the table

_NAMES = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    {
        "query": _NAMES,
        "identity": _NAMES,
        "rank": pa.int32(),
        "score": pa.float32(),
        "source": _NAMES,
        "fold": pa.int32(),
    }
)


def write_candidates(path: Path, blocks: Iterable[tuple[str, int, Candidates]]) -> None:
    """Write candidates as one parquet file, one row a candidate.

    Columns: query, identity, rank, score, source, fold. Ranks count from 1. A query without candidates has one row with
    rank 0, without identity and score.

    Parameters
    ----------
    path : Path
    blocks : iterable of (str, int, Candidates)
        Source, fold, candidates; each source and fold once.
    """
    seen: set[tuple[str, int]] = set()
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
        for source, fold, candidates in blocks:
            if (source, fold) in seen:
                raise WhaleidError(f"{path}: source '{source}' fold {fold} is given twice; write each once")
            seen.add((source, fold))
            writer.write_table(_long(source, fold, candidates))


def _long(source: str, fold: int, candidates: Candidates) -> pa.Table:
    """One block as a long table, queries in their order, best candidate first."""
    listed = candidates.codes != PADDING
    empty = ~listed.any(axis=1)
    width = candidates.codes.shape[1]
    codes = np.column_stack([candidates.codes, np.full(len(candidates), PADDING)])
    scores = np.column_stack([candidates.scores, np.full(len(candidates), np.nan, np.float32)])
    query, place = np.nonzero(np.column_stack([listed, empty]))  # an added column for queries without any
    nothing = place == width
    return pa.table(
        {
            "query": _named(query, candidates.queries),
            "identity": _named(codes[query, place], candidates.classes, nothing),
            "rank": pa.array(np.where(nothing, 0, place + 1), pa.int32()),
            "score": pa.array(scores[query, place], pa.float32(), mask=nothing),
            "source": _named(np.zeros(len(query), int), np.array([source])),
            "fold": pa.array(np.full(len(query), fold), pa.int32()),
        },
        schema=_SCHEMA,
    )


def _named(codes: np.ndarray, names: np.ndarray, missing: np.ndarray | None = None) -> pa.DictionaryArray:
    indices = pa.array(codes.astype(np.int32), mask=missing)
    return pa.DictionaryArray.from_arrays(indices, pa.array([str(name) for name in names], pa.string()))


def read_candidates(path: Path, classes: np.ndarray | None = None) -> list[tuple[str, int, Candidates]]:
    """Read a candidates file; its rows may have any order.

    Parameters
    ----------
    path : Path
    classes : str array, shape (c,), or None
        What the codes stand for; None: the identities in the file, sorted.

    Returns
    -------
    list of (str, int, Candidates)
        Source, fold and candidates in the order of their first rows, as wide as the longest list.

    Raises
    ------
    WhaleidError
        For a file that is not such a table, an identity not in `classes`, ranks with gaps.
    """
    table = _read_table(path)
    query, query_names = _codes(table["query"])
    identity, identity_names = _codes(table["identity"])
    source, source_names = _codes(table["source"])
    folds, fold = np.unique(table["fold"].to_numpy(), return_inverse=True)
    if classes is None:
        classes = np.unique(identity_names[np.unique(identity[identity >= 0])].astype(str))
    identity = _recoded(path, identity, identity_names, classes)
    rank, score = table["rank"].to_numpy(), table["score"].to_numpy()
    blocks, first, block = np.unique(source * len(folds) + fold, return_index=True, return_inverse=True)
    found = []
    for number in np.argsort(first):
        name = str(source_names[blocks[number] // len(folds)])
        fold_number = int(folds[blocks[number] % len(folds)])
        rows = np.flatnonzero(block == number)
        try:
            codes, scores, queries = _wide(query[rows], identity[rows], rank[rows], score[rows])
            candidates = Candidates(query_names[queries].astype(str), classes, codes, scores)
        except WhaleidError as error:
            raise WhaleidError(f"{path}: source '{name}' fold {fold_number}: {error}") from error
        found.append((name, fold_number, candidates))
    return found


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise WhaleidError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from error
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if missing:
        raise WhaleidError(f"{path}: column '{missing[0]}' is missing; needed: {', '.join(_SCHEMA.names)}")
    try:
        table = table.select(_SCHEMA.names).cast(_SCHEMA)
    except pa.ArrowException as error:
        raise WhaleidError(f"{path}: a column has the wrong type: {' '.join(str(error).split())}") from error
    for name in ("query", "rank", "source", "fold"):
        if table[name].null_count:
            raise WhaleidError(f"{path}: column '{name}' has {table[name].null_count} empty cells; fill them")
    return table


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of names as codes int64 (-1 = empty) and its distinct names."""
    whole = column.unify_dictionaries().combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    codes = whole.indices.fill_null(PADDING).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, np.array(whole.dictionary.to_pylist(), dtype=object)


def _recoded(path: Path, codes: np.ndarray, names: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Codes into `names` as codes into `classes`; -1 stays."""
    place = {str(name): code for code, name in enumerate(classes)}
    used = np.unique(codes[codes >= 0])
    foreign = [str(names[code]) for code in used if str(names[code]) not in place]
    if foreign:
        raise WhaleidError(f"{path}: {len(foreign)} identities are not among the classes, first '{foreign[0]}'")
    table = np.full(len(names) + 1, PADDING, dtype=np.int64)  # the last one is for -1
    table[used] = [place[str(names[code])] for code in used]
    return table[codes]


def _wide(
    query: np.ndarray, identity: np.ndarray, rank: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The long rows of one block as codes (q, m), scores (q, m), and the code of each row's query.

    Mistakes of a file are left for `Candidates` to refuse: a rank left out or given twice leaves padding before a
    candidate or a score of NaN; a rank without an identity is padding with a score.
    """
    queries, first, row = np.unique(query, return_index=True, return_inverse=True)
    order = np.argsort(first)
    row = np.argsort(order)[row]
    width = np.bincount(row).max()
    if rank.min() < 0 or rank.max() > width:
        raise WhaleidError(f"ranks must count 1, 2, 3, ... for each query; found {rank.min()} to {rank.max()}")
    listed = rank > 0
    codes = np.full((len(queries), width), PADDING, dtype=np.int64)
    scores = np.full(codes.shape, -np.inf, dtype=np.float32)
    place = row[listed], rank[listed] - 1
    codes[place], scores[place] = identity[listed], score[listed]
    given = np.zeros(codes.shape, dtype=np.int64)
    np.add.at(given, place, 1)
    scores[given > 1] = np.nan
    return codes, scores, queries[order]
