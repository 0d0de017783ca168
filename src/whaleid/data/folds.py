"""Folds: the training images dealt into K parts of the same make-up.

Every identity's images spread over as many folds as they can, so that a fold's query finds its like in
the other folds. Singletons and unknown images spread evenly too, because they are a fold's unknown queries.
Images of one group (duplicates, an encounter) stay together, whatever their identities, because a copy in the
gallery would give the answer away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.utils.errors import WhaleidError

SEVERAL, ONE, UNKNOWN = range(3)  # strata: an identity with several groups, with one group, without a label


@dataclass(frozen=True)
class Bundle:
    """A group of images as it is dealt: its number of images, stratum, and the identities that it holds."""

    size: int
    stratum: int
    identities: tuple[int, ...]
    counts: tuple[int, ...]
    """Images of each of the identities."""


def make_folds(images: pd.DataFrame, folds: int, unknown: str | None, seed: int = 0) -> pd.DataFrame:
    """Deal the labelled images over the folds.

    images: the images table (`image, split, identity, group`); its train rows are dealt.
    folds: number of folds, at least 2 and at most the number of groups.
    unknown: label of unknown images, if the competition has one.
    Returns `image, identity, fold` (int64, 0..folds-1), in the order of `images`.

    The result depends on the images, `folds` and `seed` alone, not on the order of the rows.
    """
    labelled = images.loc[images["split"] == "train", ["image", "identity", "group"]].reset_index(drop=True)
    ordered = labelled.sort_values("image", kind="stable")
    group = _group_codes(ordered)
    _require_enough(folds, len(ordered), int(group.max(initial=-1)) + 1)
    fold_of_group = _deal(_bundles(ordered["identity"], group, unknown), folds, seed)
    fold = pd.Series(fold_of_group[group], index=ordered.index, dtype="int64")
    return labelled[["image", "identity"]].assign(fold=fold)


def fold_table(folds: pd.DataFrame, unknown: str | None) -> pd.DataFrame:
    """What each fold holds, one row a fold.

    Columns: fold; images; identities (named ones); singletons (identities with one image in all); unknown
    (images with the unknown label); unseen (images of a named identity that has no image in the other folds:
    unknown by the protocol); unknown_share ((unknown + unseen) / images).
    """
    named = folds[folds["identity"] != unknown] if unknown is not None else folds
    total = named.groupby("identity")["image"].transform("size")
    within = named.groupby(["identity", "fold"])["image"].transform("size")
    sizes = folds.groupby("fold").size()

    def counted(rows: pd.DataFrame) -> pd.Series:
        return rows.groupby("fold").size().reindex(sizes.index, fill_value=0)

    table = pd.DataFrame(
        {
            "images": sizes,
            "identities": counted(named.drop_duplicates(["identity", "fold"])),
            "singletons": counted(named[total == 1]),
            "unknown": sizes - counted(named),
            "unseen": counted(named[total == within]),
        }
    )
    table["unknown_share"] = (table["unknown"] + table["unseen"]) / table["images"]
    return table.rename_axis("fold").reset_index()


def _group_codes(ordered: pd.DataFrame) -> np.ndarray:
    """Code of each image's group, int64 (n,), numbered by first appearance; without a group it is its own."""
    own = "image:" + ordered["image"].astype(str)
    label = ("group:" + ordered["group"].astype(str)).where(ordered["group"].notna(), own)
    return pd.factorize(label)[0]


def _require_enough(folds: int, images: int, groups: int) -> None:
    if folds < 2:
        raise WhaleidError(f"folds is {folds}: at least 2 are needed, one to ask and one to learn from")
    if folds > groups:
        together = f" in {groups:,} groups that stay together" if groups < images else ""
        raise WhaleidError(
            f"{folds} folds are more than the {images:,} training images{together} can fill; lower `folds`"
        )


def _bundles(identity: pd.Series, group: np.ndarray, unknown: str | None) -> list[Bundle]:
    """The groups with what dealing them needs, in the order of their codes."""
    codes, names = pd.factorize(identity, sort=True)
    pairs = pd.DataFrame({"group": group, "identity": codes}).value_counts(sort=False).rename("count").reset_index()
    pairs = pairs.sort_values(["group", "identity"])
    groups_of_identity = np.bincount(pairs["identity"], minlength=len(names))
    unknown_code = names.tolist().index(unknown) if unknown in names else -1

    held: list[list[tuple[int, int]]] = [[] for _ in range(int(group.max()) + 1)]
    for number, code, count in zip(pairs["group"], pairs["identity"], pairs["count"], strict=True):
        held[number].append((code, count))
    return [_bundle(members, groups_of_identity, unknown_code) for members in held]


def _bundle(members: list[tuple[int, int]], groups_of_identity: np.ndarray, unknown_code: int) -> Bundle:
    size = sum(count for _, count in members)
    known = [(code, count) for code, count in members if code != unknown_code]
    several = any(groups_of_identity[code] > 1 for code, _ in known)
    stratum = SEVERAL if several else ONE if known else UNKNOWN
    return Bundle(size, stratum, tuple(code for code, _ in known), tuple(count for _, count in known))


def _deal(bundles: list[Bundle], folds: int, seed: int) -> np.ndarray:
    """Fold of each bundle, int64 (groups,).

    One at a time, strata and identities in turn, large bundles of an identity first. A bundle goes where its
    identities have the fewest images; among those, where its stratum has; among those, where there are fewest
    in all. As the last two change with every bundle, no fold collects all the remainders.
    """
    random = np.random.default_rng(seed)
    tie_break = random.permutation(folds).tolist()
    shuffled = random.permutation(1 + max(max(bundle.identities, default=0) for bundle in bundles)).tolist()
    order = random.permutation(len(bundles)).tolist()

    def turn(number: int) -> tuple[int, int, int, int]:
        bundle = bundles[number]
        first = min((shuffled[code] for code in bundle.identities), default=0)
        return bundle.stratum, first, -bundle.size, order[number]

    dealt = np.zeros(len(bundles), np.int64)
    in_fold = [0] * folds
    in_stratum = [[0] * folds for _ in range(3)]
    of_identity: dict[int, list[int]] = {}
    for number in sorted(range(len(bundles)), key=turn):
        bundle = bundles[number]
        stratum = in_stratum[bundle.stratum]
        own = [of_identity.setdefault(code, [0] * folds) for code in bundle.identities]
        cost = list(zip(_total(own, folds), stratum, in_fold, strict=True))
        best = min(tie_break, key=cost.__getitem__)
        dealt[number] = best
        in_fold[best] += bundle.size
        stratum[best] += bundle.size
        for held, count in zip(own, bundle.counts, strict=True):
            held[best] += count
    return dealt


def _total(rows: list[list[int]], folds: int) -> list[int]:
    """Sum of lists of `folds` numbers, place by place."""
    return rows[0] if len(rows) == 1 else [sum(row[fold] for row in rows) for fold in range(folds)]
