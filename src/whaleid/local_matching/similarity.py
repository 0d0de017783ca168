"""The similarity of two images: scale, rotation and shift that most of their matches agree with.

A keypoint has a place, a size and a direction, so that a single match proposes a similarity (Lowe, "Distinctive image
features from scale-invariant keypoints", 2004): nothing is drawn at random, and matches of many pairs of images are
handled at once. Each pair's strongest matches propose; the proposal with most weight behind it is fitted to the
matches that agree with it by least squares. It is found at any scale, rotation and shift.

Places are complex numbers, as shares of an image's longer side: a similarity is place * factor + shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.05
"""Largest distance of a place from where the similarity takes it, as a share of the longer side."""
_SIZES = np.log(1.5)  # largest log ratio of a match's factor of size and the similarity's
_TURNS = np.deg2rad(30)
_APART = 2 / 256  # a place with two directions is two keypoints, which do not confirm one another
_PROPOSALS = 40  # of a pair; nyala, MAP@5 out of fold of the pairs: 0.435 with 20, 0.439 with 40
_FEWEST = 3  # matches that least squares are fitted to
_CELLS = 200_000  # matches x proposals at a time


@dataclass(frozen=True)
class MatchMoves:
    """How the matches of pairs of images move keypoints.

    Attributes
    ----------
    start, end : complex64 arrays, shape (m,)
        Places in both images.
    size, turn : float32 arrays, shape (m,)
        Log ratio of sizes, as shares of the longer sides, and turn in radians.
    weight : float32 array, shape (m,)
        >= 0; what a match counts.
    """

    start: np.ndarray
    end: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    weight: np.ndarray

    def padded(self, index: np.ndarray, real: np.ndarray) -> MatchMoves:
        """Matches in a table. index: int64 (p, n). real: bool (p, n), False where there is none: weight 0."""
        columns = self.start[index], self.end[index], self.size[index], self.turn[index]
        return MatchMoves(*columns, np.where(real, self.weight[index], np.float32(0)))

    @property
    def factor(self) -> np.ndarray:
        """Scale and rotation of the similarity that each match proposes, complex64."""
        return np.exp(self.size + 1j * self.turn).astype(np.complex64)


@dataclass(frozen=True)
class Similarities:
    """The similarities of pairs of images, and how far each match is from its pair's.

    Attributes
    ----------
    factor, shift : complex64 arrays, shape (p,)
    distance : float32 array, shape (m,)
        From where the similarity takes the match's place, the same seen from either image.
    agrees : bool array, shape (m,)
        Whether the match agrees with the similarity in place, size and turn.
    """

    factor: np.ndarray
    shift: np.ndarray
    distance: np.ndarray
    agrees: np.ndarray


def find_similarities(moves: MatchMoves, counts: np.ndarray) -> Similarities:
    """The similarity of each pair of images.

    Parameters
    ----------
    moves : MatchMoves
        One pair's matches after the other's, of any precision: they are reckoned with in 32 bits.
    counts : int64 array, shape (p,)
        Matches of each pair, >= 1.
    """
    places = (values.astype(np.complex64) for values in (moves.start, moves.end))
    moves = MatchMoves(*places, *(values.astype(np.float32) for values in (moves.size, moves.turn, moves.weight)))
    factor, shift = np.zeros((2, len(counts)), np.complex64)
    distance, agrees = np.zeros(len(moves.start), np.float32), np.zeros(len(moves.start), bool)
    order, starts = np.argsort(counts, kind="stable"), np.cumsum(counts) - counts
    while len(order):  # pairs of about as many matches together
        cost = counts[order] * np.minimum(counts[order], _PROPOSALS) * np.arange(1, len(order) + 1)
        some = max(1, int(np.searchsorted(cost, _CELLS, "right")))
        pairs, order = order[:some], order[some:]
        place = np.arange(int(counts[pairs[-1]]))
        real = place < counts[pairs][:, None]
        index = np.where(real, starts[pairs][:, None] + place, starts[pairs][:, None])
        part = moves.padded(index, real)
        factor[pairs], shift[pairs] = _refined(part, real, *_best_proposal(part, real))
        near, agree = _agreement(part, factor[pairs][:, None], shift[pairs][:, None])
        distance[index[real]], agrees[index[real]] = near[real], agree[real]
    return Similarities(factor, shift, distance, agrees)


def _agreement(moves: MatchMoves, factor: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of matches from similarities, and whether they agree; arrays that are broadcast together."""
    scale = np.abs(factor)
    distance = np.abs(moves.end - factor * moves.start - shift) / np.sqrt(scale)
    agrees = (distance <= TOLERANCE) & (np.abs(moves.size - np.log(scale)) <= _SIZES)
    return distance, agrees & (np.cos(moves.turn - np.angle(factor)) >= np.cos(_TURNS))


def _best_proposal(moves: MatchMoves, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift, complex64 (p,), of the match of each row that agrees with most weight."""
    proposals = min(_PROPOSALS, real.shape[1])
    strongest = np.argsort(-moves.weight, axis=1, kind="stable")[:, :proposals]

    def proposed(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, strongest, axis=1)

    factor, start = proposed(moves.factor), proposed(moves.start)
    shift = proposed(moves.end) - factor * start
    every = MatchMoves(
        *(values[:, None, :] for values in (moves.start, moves.end, moves.size, moves.turn, moves.weight))
    )
    _, agrees = _agreement(every, factor[..., None], shift[..., None])
    agrees &= np.abs(every.start - start[..., None]) > _APART
    support = np.where(agrees, every.weight, 0).sum(axis=2) + proposed(moves.weight)
    best = np.where(proposed(real), support, -1).argmax(axis=1)[:, None]
    return np.take_along_axis(factor, best, axis=1)[:, 0], np.take_along_axis(shift, best, axis=1)[:, 0]


def _refined(
    moves: MatchMoves, real: np.ndarray, factor: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares over the matches that agree; a proposal stays where they are few, or its scale would double."""
    _, agrees = _agreement(moves, factor[:, None], shift[:, None])
    weight = np.where(agrees & real, moves.weight, 0)
    total = np.maximum(weight.sum(axis=1), 1e-9)
    start, end = (weight * moves.start).sum(axis=1) / total, (weight * moves.end).sum(axis=1) / total
    out, back = moves.start - start[:, None], moves.end - end[:, None]
    spread = np.maximum((weight * np.abs(out) ** 2).sum(axis=1), 1e-12)
    fitted = (weight * back * out.conj()).sum(axis=1) / spread
    close = np.abs(np.log(np.maximum(np.abs(fitted), 1e-9) / np.abs(factor))) < np.log(2)
    fits = ((weight > 0).sum(axis=1) >= _FEWEST) & close
    return np.where(fits, fitted, factor), np.where(fits, end - fitted * start, shift)
