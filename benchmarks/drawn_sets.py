"""Three drawn competitions that look like no fluke: data that the project's settings were not tuned on.

    .venv/bin/python benchmarks/drawn_sets.py [coats] [marks] [faces] [--out data] [--seed 0]
    make leaderboard COMPETITION=data/drawn-coats/competition.yaml

coats   Flanks of four-legged animals with stripes or spots (a reaction-diffusion pattern), left and right side
        different; walking, seen obliquely, under dappled light, behind grass. Closed: every query is known.
marks   Constellations of small marks (glyphs of the DejaVu font) on dark skin under water, photographed from near and
        far: the same marks at sizes that differ by up to 4. Open; a tenth of the training rows have no label.
faces   Blotched faces from frontal to profile, in visits of one to four pictures; each day has a light of its own. The
        test set is the later days, with individuals that training never shows. Open; no training row is unknown.
        `dated.yaml` beside it keeps each day in one fold.

Each set is a folder `drawn-<name>`: images/, train.csv, test.csv, sample_submission.csv, solution.csv and a
competition.yaml. An individual and a photograph each have a random generator of their own, made from the seed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from drawn_animals import draw_coat, draw_face, draw_skin, photograph_coat, photograph_face, photograph_skin
from PIL import Image

from whaleid.data.sample import UNKNOWN, plan
from whaleid.evaluation.metrics import rank_of_truth, reciprocal_rank_at_k
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

NEW = "new_individual"
K = 5
QUALITY = (60, 95)  # JPEG
KEPT = 64  # individuals in memory; the photographs of one are drawn one after the other


@dataclass(frozen=True)
class Shot:
    """One planned photograph.

    Attributes
    ----------
    number, individual : int
        Seed the photograph's and the individual's generator.
    label : str
        Identity, or `new_individual`.
    train : bool
    day, visit : int
        Seed what the photographs of a day, and of a visit, share; -1 where a set has no days.
    """

    number: int
    individual: int
    label: str
    train: bool
    day: int = -1
    visit: int = -1


@dataclass(frozen=True)
class DrawnSet:
    """A kind of animals and of photographs.

    Attributes
    ----------
    number : int
        Seeds its generators.
    plan : callable
        (seed, share of the full size) -> shots.
    individual : callable
        Generator -> what all photographs of the individual are drawn from.
    photograph : callable
        (individual, generators by name: photograph, visit, day) -> RGB, uint8 (h, w, 3).
    competition : str
        What its competition.yaml says beside the tables.
    variants : dict
        File name -> what another YAML says instead.
    """

    number: int
    plan: Callable[[int, float], list[Shot]]
    individual: Callable[[np.random.Generator], Any]
    photograph: Callable[[Any, dict[str, np.random.Generator]], np.ndarray]
    competition: str
    variants: dict[str, str] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------- the plan


def long_tailed(seed: int, identities: int, train: int, test: int, unknown: tuple[float, float]) -> list[Shot]:
    """Shots by the plan of the flukes' sample. unknown: share of the rows without a label in train and test."""
    photos = plan(seed, identities, train, test, *unknown)
    return [
        Shot(photo.number, photo.individual, NEW if photo.label == UNKNOWN else photo.label, photo.path[:5] == "train")
        for photo in photos
    ]


DAYS, TRAIN_DAYS = 20, 12
NEW_SHARE = 0.275  # of the test rows
VISIT = (1, 5)  # photographs of an individual on one day: 1 to 4


def by_days(seed: int, share: float, identities: int = 75, days_each: float = 6.0) -> list[Shot]:
    """Shots in visits: an individual comes on some days, of which the later ones are the test set.

    Individuals 0 .. identities - 1 come on at least one training day; the others come on test days only.
    """
    rng = generator(seed, 0)
    identities = max(6, round(identities * share))
    names = rng.permutation(identities * 10)[:identities]  # so that order tells nothing
    visits: list[tuple[int, int, int]] = []  # individual, day, photographs
    for individual in range(identities):
        many = 1 + rng.poisson(rng.gamma(1.5, days_each / 1.5))
        days = rng.permutation(DAYS)[:many]
        if days.min() >= TRAIN_DAYS:
            days[0] = rng.integers(TRAIN_DAYS)
        visits += [(individual, int(day), int(rng.integers(*VISIT))) for day in days]
    known = sum(count for _, day, count in visits if day >= TRAIN_DAYS)
    missing, individual = NEW_SHARE / (1 - NEW_SHARE) * known, identities
    while missing > 0:
        for day in rng.permutation(np.arange(TRAIN_DAYS, DAYS))[: 1 + rng.poisson(2)]:
            visits.append((individual, int(day), int(rng.integers(*VISIT))))
            missing -= visits[-1][2]
        individual += 1
    shots = []
    for number, (individual, day, count) in enumerate(visits):
        label = f"face_{names[individual]:03d}" if individual < identities else NEW
        shots += [Shot(len(shots) + i, individual, label, day < TRAIN_DAYS, day, number) for i in range(count)]
    return shots


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random generator of one stream of a set."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


# -------------------------------------------------------------------------------------------------- files

OPEN = f"unknown: {NEW}"
SETS = {
    "coats": DrawnSet(
        1,
        lambda seed, share: long_tailed(seed, sized(120, share), sized(900, share), sized(350, share), (0.0, 0.0)),
        draw_coat,
        photograph_coat,
        "unknown: null",
    ),
    "marks": DrawnSet(
        2,
        lambda seed, share: long_tailed(seed, sized(150, share), sized(1000, share), sized(400, share), (0.1, 0.25)),
        draw_skin,
        photograph_skin,
        OPEN,
    ),
    "faces": DrawnSet(
        3, by_days, draw_face, photograph_face, OPEN, variants={"dated.yaml": f"{OPEN}\ngroup: date"}
    ),
}  # fmt: skip


def sized(count: int, share: float) -> int:
    """A number of the full set, scaled."""
    return max(6, round(count * share))


def make_set(name: str, root: Path, seed: int = 0, share: float = 1.0) -> Path:
    """Draw one set into `root`, which must not exist yet; the same seed gives the same bytes.

    Parameters
    ----------
    name : {"coats", "marks", "faces"}
    root : Path
    seed : int
    share : float
        Of the full number of identities and photographs.

    Returns
    -------
    Path
        competition.yaml.
    """
    if root.exists():
        raise WhaleidError(f"{root}: is there already; remove it or choose another folder (--out)")
    chosen = SETS[name]
    shots = chosen.plan(seed, share)
    names = file_names(seed, chosen.number, len(shots))
    root.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(root) as partial:
        (partial / "images").mkdir(parents=True)
        draw_all(chosen, shots, names, seed, partial / "images")
        write_tables(shots, names, partial)
        for file, settings in {"competition.yaml": chosen.competition, **chosen.variants}.items():
            title = root.name if file == "competition.yaml" else f"{root.name}-{Path(file).stem}"
            (partial / file).write_text(competition_yaml(title, settings, dated=shots[0].day >= 0))
    return root / "competition.yaml"


def file_names(seed: int, number: int, count: int) -> list[str]:
    """Names that tell nothing of what is in the picture."""
    drawn = generator(seed, number, 0).permutation(16**5)[:count]
    return [f"{value:05x}.jpg" for value in drawn]


def draw_all(chosen: DrawnSet, shots: Sequence[Shot], names: Sequence[str], seed: int, folder: Path) -> None:
    """Draw every shot, the shots of an individual one after the other."""
    individual = lru_cache(KEPT)(lambda which: chosen.individual(generator(seed, chosen.number, 1, which)))
    for shot, name in sorted(zip(shots, names, strict=True), key=lambda pair: pair[0].individual):
        rngs = {"photograph": generator(seed, chosen.number, 2, shot.number)}
        if shot.day >= 0:
            rngs |= {"visit": generator(seed, chosen.number, 3, shot.visit)}
            rngs |= {"day": generator(seed, chosen.number, 4, shot.day)}
        picture = Image.fromarray(np.ascontiguousarray(chosen.photograph(individual(shot.individual), rngs)))
        picture.save(folder / name, "JPEG", quality=int(rngs["photograph"].integers(*QUALITY)))


def write_tables(shots: Sequence[Shot], names: Sequence[str], root: Path) -> None:
    """The four CSV files, in the order of the files' names."""
    rows = sorted(zip(names, shots, strict=True), key=lambda row: row[0])
    date = ["date"] if shots[0].day >= 0 else []
    train = [[name, shot.label, *day_of(shot)] for name, shot in rows if shot.train]
    test = [[name, shot.label, *day_of(shot)] for name, shot in rows if not shot.train]
    guesses = " ".join(sorted({row[1] for row in train} - {NEW})[:K])
    write_csv(root / "train.csv", ["Image", "Id", *date], train)
    write_csv(root / "test.csv", ["Image", *date], [[row[0], *row[2:]] for row in test])
    write_csv(root / "solution.csv", ["Image", "Id"], [row[:2] for row in test])
    write_csv(root / "sample_submission.csv", ["Image", "Id"], [[row[0], guesses] for row in test])


def day_of(shot: Shot) -> list[str]:
    """The date column of a row; none where the set has no days."""
    return [(datetime.date(2025, 5, 1) + datetime.timedelta(days=shot.day)).isoformat()] if shot.day >= 0 else []


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def competition_yaml(name: str, settings: str, dated: bool) -> str:
    extra = ", extra: {date: date}" if dated else ""
    return f"""# Drawn by benchmarks/drawn_sets.py.
name: {name}
root: .
train: {{csv: train.csv, images: images, image: Image, identity: Id{extra}}}
test: {{csv: test.csv, images: images, image: Image{extra}}}
submission: {{image: Image, identities: Id}}
{settings}
k: {K}
solution: solution.csv
"""


# --------------------------------------------------------------------------------------------- its difficulty


def read_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row[0], row[1]) for row in list(csv.reader(file))[1:]]


def pixel_score(root: Path) -> float:
    """MAP@5 of the nearest neighbour among grey 32 x 32 pixels, over the queries of known identity."""
    train = [row for row in read_rows(root / "train.csv") if row[1] != NEW]
    test = [row for row in read_rows(root / "solution.csv") if row[1] != NEW]
    gallery, queries = (np.stack([pixels(root / "images" / name) for name, _ in rows]) for rows in (train, test))
    identities = sorted({identity for _, identity in train})
    codes = np.array([identities.index(identity) for _, identity in train])
    order = np.argsort(-queries @ gallery.T, axis=1)[:, :200]  # MAP@5 needs five different identities
    truth = np.array([identities.index(identity) for _, identity in test])
    return float(reciprocal_rank_at_k(rank_of_truth(codes[order], truth), K).mean())


def pixels(path: Path) -> np.ndarray:
    """Grey 32 x 32 pixels without their mean, L2-normalised: float32 (1024,)."""
    with Image.open(path) as picture:
        flat = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    flat = flat - flat.mean()
    return flat / (np.linalg.norm(flat) + 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="set", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of identities and photographs")
    given = parser.parse_args()
    unknown = set(given.sets) - SETS.keys()
    if unknown:
        parser.error(f"no such set: {', '.join(sorted(unknown))}; known: {', '.join(SETS)}")
    for name in given.sets or SETS:
        start, root = time.process_time(), given.out / f"drawn-{name}"
        path = make_set(name, root, given.seed, given.share)
        print(f"{path}: {summary(root)}; {time.process_time() - start:.0f} s of the processor", flush=True)


def summary(root: Path) -> str:
    """Counts of a set, and how far raw pixels get."""
    train, test = read_rows(root / "train.csv"), read_rows(root / "solution.csv")
    sizes = Counter(identity for _, identity in train if identity != NEW)
    new = [sum(identity == NEW for _, identity in rows) / len(rows) for rows in (train, test)]
    return (
        f"{len(train)} train images ({new[0]:.1%} new) of {len(sizes)} identities (1 to {max(sizes.values())} each, "
        f"{sum(size == 1 for size in sizes.values())} with one), {len(test)} test images ({new[1]:.1%} new); nearest "
        f"pixels: MAP@{K} {pixel_score(root):.3f} of the known"
    )


if __name__ == "__main__":
    main()
