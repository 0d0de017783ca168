"""A tiny competition in any form of answer: drawn photographs, and features as another program would write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from ladder_world import write_folder
from PIL import Image

from whaleid.config.settings import Settings
from whaleid.pipeline.project import Project, open_project

NEW = "new_individual"
FOLDS = 3
RECIPE = f"""
folds: {FOLDS}
sources: {{foreign: foreign}}
combine:
  concat: {{whiten: null}}
  classifier: null
  full_gallery: false
"""


def place_world(
    place: Path, form: str, more: str = "", noise: float = 0.5, identities: int = 14, seed: int = 0
) -> pd.DataFrame:
    """Write the competition `place`/world.yaml, whose form of answer is `form`; returns its test images.

    Odd identities are lynxes, even ones turtles. A fifth of the identities is in the test set alone.

    Returns
    -------
    DataFrame
        image, identity (the true one), dataset, known.
    """
    rng = np.random.default_rng(seed)
    images = []
    for number in range(identities):
        name, known = f"id_{number:02d}", number % 5 != 4
        for split, count in (("train", 6 if known else 0), ("test", 3)):
            images += [(split, name, ("turtle", "lynx")[number % 2], known)] * count
    table = pd.DataFrame(images, columns=["split", "identity", "dataset", "known"])
    table = table.sample(frac=1, random_state=seed).sort_values("split", ascending=False, kind="stable")
    table = table.reset_index(drop=True)
    table["image"] = [f"{number:03d}.png" for number in range(len(table))]
    (place / "images").mkdir(parents=True)
    for row, image in enumerate(table["image"]):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(place / "images" / image)
    prototypes = {name: rng.normal(size=16) for name in sorted(set(table["identity"]))}
    features = np.stack([prototypes[name] for name in table["identity"]]) + noise * rng.normal(size=(len(table), 16))
    for fold in range(FOLDS):
        write_folder(place / "foreign" / f"fold{fold}", table["image"], features)
    train, test = (table[table["split"] == split] for split in ("train", "test"))
    train[["image", "identity", "dataset"]].to_csv(place / "train.csv", index=False)
    test[["image", "dataset"]].to_csv(place / "test.csv", index=False)
    (place / "recipe.yaml").write_text(RECIPE.replace("foreign: foreign", f"foreign: {place / 'foreign'}"))
    (place / "world.yaml").write_text(
        f"name: world\nroot: {place}\n"
        "train: {csv: train.csv, images: images, image: image, identity: identity, extra: {dataset: dataset}}\n"
        "test: {csv: test.csv, images: images, image: image, extra: {dataset: dataset}}\n"
        f"solution: solution.csv\nanswer: {{form: {form}{more}}}\n"
    )
    return test[["image", "identity", "dataset", "known"]].reset_index(drop=True)


def add_to_world(place: Path, text: str) -> None:
    """Add lines to the competition."""
    with (place / "world.yaml").open("a") as file:
        file.write(text)


def open_world(place: Path) -> Project:
    """The project of the competition."""
    settings = Settings(submissions=place / "submissions")
    return open_project(str(place / "world.yaml"), str(place / "recipe.yaml"), place / "work", settings=settings)
