"""Folds: the training images in K parts of the same composition.

The images of every identity are spread over as many folds as possible, so that a query finds its identity in the other
folds. Singletons and unknown images are spread evenly, too: they are a fold's unknown queries. Images of one group
(duplicates, an encounter) stay in one fold, whatever their identities, because a copy in the gallery would give the
answer away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.data.competition import first_few
from whaleid.utils.errors import WhaleidError

SEVERAL, ONE, UNKNOWN = range(3)  # strata: identities with several groups, with one group, without a label


@dataclass(frozen=True)
class Group:
    """Images that stay together.

    Attributes
    ----------
    size : int
        Number of images.
    stratum : int
        SEVERAL, ONE or UNKNOWN.
    identities, counts : tuple of int
        Codes of its named identities, and its images of each.
    """

    size: int
    stratum: int
    identities: tuple[int, ...]
    counts: tuple[int, ...]


def make_folds(images: pd.DataFrame, folds: int, unknown: str | None, seed: int = 0) -> pd.DataFrame:
    """Assign the labelled images to folds.

    Parameters
    ----------
    images : DataFrame
        images.parquet; columns `image, split, identity, group` are used, of train rows.
    folds : int
        Number of folds, at least 2 and at most the number of groups.
    unknown : str or None
        Label of unknown images.
    seed : int

    Returns
    -------
    DataFrame
        image, identity, fold (int64, 0 .. folds - 1), in the order of `images`. Depends on the images, `folds` and
        `seed`, not on the order of the rows.
    """
    labelled = images.loc[images["split"] == "train", ["image", "identity", "group"]].reset_index(drop=True)
    ordered = labelled.sort_values("image", kind="stable")
    group = _group_codes(ordered)
    _require_enough(folds, ordered["image"], group)
    fold_of_group = _assign(_groups(ordered["identity"], group, unknown), folds, seed)
    fold = pd.Series(fold_of_group[group], index=ordered.index, dtype="int64")
    return labelled[["image", "identity"]].assign(fold=fold)


def fold_table(folds: pd.DataFrame, unknown: str | None) -> pd.DataFrame:
    """Composition of each fold.

    Parameters
    ----------
    folds : DataFrame
        folds.csv.
    unknown : str or None
        Label of unknown images.

    Returns
    -------
    DataFrame, one row a fold
        fold; images; identities (named ones); singletons (identities with one image in all); unknown (images with
        the unknown label); unseen (images of a named identity that has no image in the other folds, hence unknown
        by the protocol); unknown_share, (unknown + unseen) / images.
    """
    named = folds[folds["identity"] != unknown] if unknown is not None else folds
    total = named.groupby("identity")["image"].transform("size")
    within = named.groupby(["identity", "fold"])["image"].transform("size")
    sizes = folds.groupby("fold").size()

    def count(rows: pd.DataFrame) -> pd.Series:
        return rows.groupby("fold").size().reindex(sizes.index, fill_value=0)

    table = pd.DataFrame(
        {
            "images": sizes,
            "identities": count(named.drop_duplicates(["identity", "fold"])),
            "singletons": count(named[total == 1]),
            "unknown": sizes - count(named),
            "unseen": count(named[total == within]),
        }
    )
    table["unknown_share"] = (table["unknown"] + table["unseen"]) / table["images"]
    return table.rename_axis("fold").reset_index()


def _group_codes(ordered: pd.DataFrame) -> np.ndarray:
    """Code of each image's group, int64 (n,), by first appearance; an image without a group is one of its own."""
    alone = "image:" + ordered["image"].astype(str)
    label = ("group:" + ordered["group"].astype(str)).where(ordered["group"].notna(), alone)
    return pd.factorize(label)[0]


def _require_enough(folds: int, images: pd.Series, group: np.ndarray) -> None:
    if folds < 2:
        raise WhaleidError(f"folds is {folds}; at least 2 are needed, one to validate on and one to train on")
    sizes = np.bincount(group)
    if folds <= len(sizes):
        return
    if len(sizes) == len(images):
        raise WhaleidError(f"{folds} folds are more than the {len(images):,} training images can fill; lower `folds`")
    largest = images[group == sizes.argmax()]
    raise WhaleidError(
        f"{folds} folds are more than the {len(images):,} training images can fill, as they form {len(sizes):,} groups "
        f"of copies, or of one `group`, that share a fold (the largest has {len(largest):,}: {first_few(largest)}); "
        "lower `folds`, or, where different animals are taken for copies, give boxes or set find_copies to false"
    )


def _groups(identity: pd.Series, code: np.ndarray, unknown: str | None) -> list[Group]:
    """Groups of images in the order of their codes."""
    codes, names = pd.factorize(identity, sort=True)
    pairs = pd.DataFrame({"group": code, "identity": codes}).value_counts(sort=False).rename("count").reset_index()
    pairs = pairs.sort_values(["group", "identity"])
    groups_of_identity = np.bincount(pairs["identity"], minlength=len(names))
    unknown_code = names.tolist().index(unknown) if unknown in names else -1

    members: list[list[tuple[int, int]]] = [[] for _ in range(int(code.max()) + 1)]
    for number, held, count in zip(pairs["group"], pairs["identity"], pairs["count"], strict=True):
        members[number].append((held, count))
    return [_group(held, groups_of_identity, unknown_code) for held in members]


def _group(members: list[tuple[int, int]], groups_of_identity: np.ndarray, unknown_code: int) -> Group:
    size = sum(count for _, count in members)
    known = [(code, count) for code, count in members if code != unknown_code]
    several = any(groups_of_identity[code] > 1 for code, _ in known)
    stratum = SEVERAL if several else ONE if known else UNKNOWN
    return Group(size, stratum, tuple(code for code, _ in known), tuple(count for _, count in known))


def _assign(groups: list[Group], folds: int, seed: int) -> np.ndarray:
    """Fold of each group, int64 (n_groups,).

    One group at a time, by stratum and identity, an identity's large groups first. A group goes to the fold with the
    fewest images of its identities; among those, of its stratum; among those, in all. As the last two change with every
    group, no fold collects all the remainders.
    """
    random = np.random.default_rng(seed)
    tie_break = random.permutation(folds).tolist()
    shuffled = random.permutation(1 + max(max(group.identities, default=0) for group in groups)).tolist()
    order = random.permutation(len(groups)).tolist()

    def turn(number: int) -> tuple[int, int, int, int]:
        group = groups[number]
        first = min((shuffled[code] for code in group.identities), default=0)
        return group.stratum, first, -group.size, order[number]

    assigned = np.zeros(len(groups), np.int64)
    in_fold = [0] * folds
    in_stratum = [[0] * folds for _ in range(3)]
    of_identity: dict[int, list[int]] = {}
    for number in sorted(range(len(groups)), key=turn):
        group = groups[number]
        stratum = in_stratum[group.stratum]
        identities = [of_identity.setdefault(code, [0] * folds) for code in group.identities]
        total = [sum(counts[fold] for counts in identities) for fold in range(folds)]
        cost = list(zip(total, stratum, in_fold, strict=True))
        best = min(tie_break, key=cost.__getitem__)
        assigned[number] = best
        in_fold[best] += group.size
        stratum[best] += group.size
        for counts, count in zip(identities, group.counts, strict=True):
            counts[best] += count
    return assigned
