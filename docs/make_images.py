"""Draw the two images of the README from the drawn sample: run it after `make leaderboard`.

    .venv/bin/python docs/make_images.py

`docs/images/guesses.jpg`: out-of-fold queries with their five guesses. `docs/images/matches.jpg`: matched keypoints of
two images of one individual. Only the drawn sample is shown, so no photograph of anybody's is published.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from whaleid.config import LocalConfig
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import describe, described_together
from whaleid.notebooks import notebook_project
from whaleid.report.examples import Example, add_gallery_images, choose_examples
from whaleid.report.grid import draw_grid
from whaleid.report.inputs import Results, best_single_features, read_results, read_top_guesses
from whaleid.report.matches import draw_image_pair
from whaleid.report.thumbnails import box_of, thumbnails

FOLDER = Path(__file__).resolve().parent / "images"
QUERIES = 3
PAIRS = 40
"""Pairs of images of one individual that are matched."""
VERIFIED = 25
"""The pair whose number of verified matches is nearest to this is drawn: more lines would hide the images."""


def main() -> None:
    results = read_results(notebook_project({}, competition="sample", work=os.environ.get("WORK")))
    FOLDER.mkdir(exist_ok=True)
    draw_guesses(results, FOLDER / "guesses.jpg")
    draw_pair(results, FOLDER / "matches.jpg")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def draw_guesses(results: Results, path: Path) -> None:
    """Queries with their five guesses: confident right ones, and one whose right guess is not the first."""
    competition = results.project.competition
    folder = results.project.workspace.candidates(results.project.recipe.name)
    top = read_top_guesses(folder / "oof.parquet", results.figures["ladder"]["final"], results.protocol, 5)
    chosen = choose_examples(top, competition.unknown, count=len(top.rows))
    named = (example for example in chosen["wrong"] if example.truth != competition.unknown)
    late = [example for example in named if any(guess.right for guess in example.guesses)]
    examples = add_gallery_images(
        [*chosen["right"][: QUERIES - 1], *late[:1]], results.protocol, results.images, best_single_features(results)[1]
    )
    pixels, titles, marks = [], [], []
    for example in examples:
        rows = [example.row, *(guess.row for guess in example.guesses)]
        pixels += [_pixels(row, results) for row in rows]
        titles += [f"query: {example.truth}", *_guess_titles(example)]
        marks += [None, *(guess.right for guess in example.guesses)]
    figure = draw_grid(pixels, titles, columns=6, right=marks)
    figure.savefig(path, dpi=90, bbox_inches="tight", pil_kwargs={"quality": 85, "subsampling": 0})


def _pixels(row: int | None, results: Results) -> np.ndarray:
    """Thumbnail of an image; a grey area for a guess without one, which is the unknown label."""
    if row is None:
        return np.full((110, 220, 3), 225, dtype=np.uint8)
    return thumbnails(results.images, [row], results.project.competition.root)[0]


def _guess_titles(example: Example) -> list[str]:
    return [f"{place}. {guess.identity}" for place, guess in enumerate(example.guesses, 1)]


def draw_pair(results: Results, path: Path) -> None:
    """Matched keypoints of two images of one individual."""
    images, root, local = results.images, results.project.competition.root, LocalConfig()
    labelled = images[(images["split"] == "train") & (images["identity"] != results.project.competition.unknown)]
    groups = [group.index[:2].tolist() for _, group in labelled.groupby("identity") if group["group"].nunique() > 1]
    rows = [row for pair in groups[:PAIRS] for row in pair]
    described = described_together(
        [describe(root / images["path"].iloc[row], box_of(images, row), local) for row in rows], local.features
    )
    found = [matched_keypoints(described, 2 * pair, 2 * pair + 1, local) for pair in range(len(rows) // 2)]
    best = int(np.argmin([abs(verified.sum() - VERIFIED) for _, _, verified in found]))
    drawn = draw_image_pair(images, root, (rows[2 * best], rows[2 * best + 1]), found[best], local.size)
    Image.fromarray(drawn).save(path, quality=88, subsampling=0)


if __name__ == "__main__":
    main()
