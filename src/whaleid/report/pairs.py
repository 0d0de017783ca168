"""The report's matched keypoints: a few queries beside the images that local matching would answer them with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whaleid.config import LocalConfig
from whaleid.local_matching.geometric_verification import Matcher, matcher_of
from whaleid.local_matching.keypoints import Described, local_name, read_described
from whaleid.report.examples import Example, choose, gallery_of
from whaleid.report.markup import Markup, join, picture, tag
from whaleid.report.matches import Matches, best_match, matches_line, matches_picture
from whaleid.report.material import StackInputs

COUNT = 3
"""Queries of each kind; a wrong one is shown twice, with the guess and with the truth."""
_QUALITY = 88  # of the JPEG: a pair is 1.0 MB of pixels and about 100 kB of JPEG


@dataclass(frozen=True)
class Pair:
    """A query beside one identity's image. query, row: of images.parquet."""

    query: int
    row: int
    identity: str
    right: bool
    matches: Matches


def matched_pairs(material: StackInputs, folder: Path) -> Markup:
    """The section's body; its pictures are drawn into `folder`."""
    local = material.project.recipe.combine.local_matching
    assert local is not None  # the page has this section only where the recipe matches keypoints
    kept = material.project.workspace.local(local_name(local))
    if not (kept / "points.npy").is_file():
        said = "The keypoints are not in the work folder, so there are no matches to show; `make ensemble` finds them."
        return tag("p", said)
    described = read_described(kept, material.images, local.features)
    matcher = matcher_of(described, material.images, local, material.project.settings.weights)
    chosen = choose(material.final, material.project.competition.unknown, COUNT)
    right = [pair for example in chosen["right"] for pair in pairs_of(example, material, described, local, matcher)]
    wrong = [pair for example in chosen["wrong"] for pair in pairs_of(example, material, described, local, matcher)]
    said = (
        "A query on the left, on the right the gallery image of the first guess that shares most of its marks; for a "
        "wrong guess the true identity's too, where the gallery has one. A line joins two keypoints that are each "
        "other's best match: green where size, direction and place agree as well, so that the match counts; grey where "
        "not."
    )
    parts = [tag("p", said)]
    for title, pairs in (("Surely right", right), ("Surely wrong", wrong)):
        shown = [_figure(pair, material, local, folder) for pair in pairs] or [tag("p", "There is none.")]
        parts += [tag("h3", title), *shown]
    return join(parts)


def pairs_of(
    example: Example, material: StackInputs, described: Described, local: LocalConfig, matcher: Matcher | None = None
) -> list[Pair]:
    """The query beside its first guess and, where that is wrong, beside the truth; each with its best image."""
    part = next(part for part in material.protocol.parts if part.fold == example.fold)
    gallery = gallery_of(part, material.protocol.classes)
    pairs = []
    for identity in dict.fromkeys([example.guesses[0].identity, example.truth]):
        if identity in gallery:
            row, matches = best_match(described, example.row, gallery[identity], local, matcher)
            pairs.append(Pair(example.row, row, identity, identity == example.truth, matches))
    return pairs


def _figure(pair: Pair, material: StackInputs, local: LocalConfig, folder: Path) -> Markup:
    from PIL import Image

    names, root = material.images["image"], material.project.competition.root
    drawn = matches_picture(material.images, root, (pair.query, pair.row), pair.matches, local.size)
    file = f"matches-{pair.query}-{pair.row}.jpg"
    Image.fromarray(drawn).save(folder / file, quality=_QUALITY, subsampling=0)  # thin lines keep their colour
    query, other, line = names.iloc[pair.query], names.iloc[pair.row], matches_line(pair.matches)
    said = "the right identity" if pair.right else "the wrong identity"
    caption = tag("figcaption", f"{query} beside {other} of ", tag("b", pair.identity), f", {said}: {line}")
    kind = "right" if pair.right else "wrong"
    return tag("figure", picture(file, f"keypoints of {query} and {other}: {line}"), caption, class_=f"pair {kind}")
