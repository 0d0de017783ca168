"""The report of a recipe's results: `report/<recipe>/index.html` and its images, a folder that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from whaleid.data.folds import fold_table
from whaleid.ensemble.protocol import FULL_DATA
from whaleid.ensemble.summary import burst_lines, gallery_lines, round_lines, share_lines
from whaleid.evaluation.log import read_log
from whaleid.local_matching.keypoints import local_name, read_described
from whaleid.local_matching.matchers import matcher_of
from whaleid.pipeline.ablation import read_ablation
from whaleid.pipeline.metrics import answer_score
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.submission import log_path
from whaleid.report import charts
from whaleid.report.atlas import write_atlas
from whaleid.report.background import background_section, offenders
from whaleid.report.copies import SHOWN, copies_across_folds, copies_section
from whaleid.report.cv_lb import gap_lines, scored
from whaleid.report.examples import choose_examples
from whaleid.report.identities import accuracy_by_size, confused_pairs, worst_identities
from whaleid.report.image_map import ImageMap, image_map, map_data
from whaleid.report.inputs import Results, best_single_features, read_losses, read_results
from whaleid.report.matches import MatchedPair, draw_image_pair, match_example, matches_line
from whaleid.report.paths import FoldPaths, GraphPath, fold_paths
from whaleid.report.queries import query_data, query_weights_of, shown_queries, without_unknown
from whaleid.report.thumbnails import write_thumbnails
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MATCHED = 3
"""Queries of each kind whose matched keypoints are shown; a wrong one with its guess and with its true identity."""
_QUALITY = 88  # of a JPEG of two images: about 100 kB


def write_report(project: Project, atlas: bool = False) -> Path:
    """Write the report of a recipe whose ensemble stage has run; returns the path of the page.

    atlas: whether the map is written for other viewers, too (`atlas.py`).

    Raises
    ------
    WhaleidError
        If there are no results yet, or no features for the atlas.
    """
    results = read_results(in_used_round(project))
    out = project.workspace.report(project.recipe.name)
    with atomic_path(out) as folder:
        folder.mkdir()
        queries, paths, copies = shown_queries(results), fold_paths(results), copies_across_folds(results)
        rows = {row for query in queries for row in query.rows}
        rows |= {row for path in (paths.paths if paths else ()) for row in path.rows}
        rows |= {row for one in offenders(results) for row in (one.row, one.match)}
        rows |= {row for one in copies[:SHOWN] for row in one.rows}
        write_thumbnails(results.images, rows, project.competition.root, folder / "images")
        placed = image_map(results)
        if atlas:
            _write_atlas(placed, results, folder)
        sections = _sections(results, paths, folder) | {"map": placed, "copies": copies_section(copies, results)}
        page = (
            templates()
            .get_template("page.html.j2")
            .render(
                header=_header(results),
                notices=_notices(results),
                sections=sections,
                queries=query_data(results, queries),
                charts=_charts(sections),
                map=None if placed is None else map_data(placed, results),
            )
        )
        (folder / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def _write_atlas(placed: ImageMap | None, results: Results, folder: Path) -> None:
    if placed is None:
        source = best_single_features(results)[0]
        raise WhaleidError(f"report --atlas: the features of {source} are not in the work folder; run whaleid features")
    write_atlas(placed, results, folder)


def _sections(results: Results, paths: FoldPaths | None, folder: Path) -> dict[str, Any]:
    """What each section of the page shows; None: the page has no such section. Further pictures go to the folder."""
    source, folders = best_single_features(results)
    return {
        "ladder": _ladder(results),
        "threshold": {"has_unknown": results.protocol.unknown is not None, "final": results.rankers[-1]},
        "queries": {"source": source, "has_features": bool(folders)},
        "identities": _identities(results),
        "slices": _slices(results),
        "unknown": _unknown(results),
        "calibration": _calibration(results),
        "stack": _stack(results),
        "ablation": _ablation(results),
        "training": _training(results),
        "leaderboard": _leaderboard(results),
        "matches": _matches(results, folder),
        "masks": background_section(results, folder),
        "paths": _paths(results, paths),
        "folds": _folds(results),
        "settings": _settings(results),
    }


def _charts(sections: dict[str, Any]) -> dict[str, charts.Chart]:
    """The charts of all sections, by the name of their place in the page."""
    return {
        name: chart
        for section in sections.values()
        if isinstance(section, dict)
        for name, chart in section.get("charts", {}).items()
    }


def templates() -> Environment:
    """The page's templates. Every value is escaped, so that no label can break a page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("whaleid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "score": _score, "sentence": _sentence}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _sentence(line: str) -> Markup:
    """A line of the terminal as a sentence: words between backticks are code."""
    from markupsafe import Markup, escape

    text = f"{line[:1].upper()}{line[1:]}".removesuffix(".") + "."
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _score(figures: dict[str, Any]) -> str:
    """MAP@k with half its interval."""
    return f"{figures['map']:.5f} ± {(figures['high'] - figures['low']) / 2:.5f}"


def _header(results: Results) -> dict[str, Any]:
    final, labelled = results.rankers[-1], results.folds["identity"]
    solution = results.solution.get(final["name"])
    return {
        "competition": results.figures["competition"],
        "recipe": results.figures["recipe"],
        "commit": results.figures["commit"] or "not known",
        "k": final["k"],
        "unknown": results.project.competition.unknown,
        "final": final,
        "answer": answer_score(results.figures) if results.figures["ladder"].get("answer") else None,
        "aspect": _median_aspect(results),
        "solution": None if solution is None else solution.as_json(),
        "labelled": len(labelled),
        "identities": labelled[labelled != results.project.competition.unknown].nunique(),
        "test": int((results.images["split"] == "test").sum()),
    }


def _median_aspect(results: Results) -> float:
    """Width over height of the boxes, to which the cards' pictures are fitted."""
    boxes = results.images[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    return float(np.median((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])))


def _notices(results: Results) -> list[str]:
    lines = []
    if results.stale:
        lines.append(
            "These results are out of date: settings, data or the version have changed since. Run make ensemble again."
        )
    if results.rankers[-1]["optimistic"]:
        lines.append("The score is optimistic: something was chosen by looking at the fold that is scored.")
    if full := results.figures["ladder"].get("full"):
        lines.append(
            f"Models trained on all labelled images ({', '.join(full)}) answer the test images only. They have no "
            "out-of-fold score of their own: their folds' models stand for them."
        )
    return lines + list(round_lines(results.figures))


def _ladder(results: Results) -> dict[str, Any]:
    ladder = results.figures["ladder"]
    solution = {name: score.map for name, score in results.solution.items()}
    return {
        "k": ladder["k"],
        "queries": ladder["queries"],
        "unanswerable": ladder["unanswerable"],
        "share_lines": share_lines(ladder),
        "gallery_lines": gallery_lines(ladder),
        "burst_lines": burst_lines(ladder),
        "has_test": len(results.protocol.test_rows) > 0,
        "rankers": results.rankers,
        "solution": solution,
        "optimistic": any(ranker["optimistic"] for ranker in results.rankers),
        "lowest": min([ranker["low"] for ranker in results.rankers] + list(solution.values())),
        "highest": max([ranker["high"] for ranker in results.rankers] + list(solution.values())),
    }


def _identities(results: Results) -> dict[str, Any]:
    final = results.final
    sizes = accuracy_by_size(final)
    return {
        "worst": worst_identities(final).to_dict("records"),
        "pairs": confused_pairs(final, results.project.competition.unknown).to_dict("records"),
        "sizes": sizes,
        "charts": {"sizes": charts.size_chart(sizes)} if sizes else {},
    }


def _slices(results: Results) -> dict[str, Any]:
    final, single = results.rankers[-1], results.best_single
    return {"k": final["k"], "rankers": [final, single], "rows": final["slices"], "species": final.get("species")}


def _unknown(results: Results) -> dict[str, Any]:
    """Thresholds and what they call unknown; {} where the competition has no unknown label."""
    competition, thresholds = results.project.competition, results.rankers[-1]["unknown"]
    if competition.unknown is None or thresholds is None:
        return {}
    top, ladder = results.scored, results.figures["ladder"]
    called_unknown = top.guesses[:, 0] == competition.unknown
    known, unknown = (top.best[mask & (top.best == top.best)] for mask in (top.known, ~top.known))
    shares, expected = ladder.get("shares"), ladder["share"]
    shown = {}
    if len(known) + len(unknown):
        shown["scores"] = charts.score_chart(known, unknown, thresholds["tuned"])
    if shares:
        shown["shares"] = charts.share_chart(shares, expected, ladder["k"])
    by_fold = {fold: value for fold, value in thresholds["by_fold"].items() if value is not None}
    return {
        "label": competition.unknown,
        "expected": expected,
        "thresholds": thresholds | {"by_fold": by_fold},
        "unknown_called": _mean(called_unknown[~top.known]),
        "known_called": _mean(called_unknown[top.known]),
        "shares": shares,
        "charts": shown,
        "k": ladder["k"],
    }


def _calibration(results: Results) -> dict[str, Any]:
    top = without_unknown(results.scored, results.project.competition.unknown)
    listed = ~np.isnan(top.best)
    right = top.known & (top.guesses[:, 0] == top.truth)
    values = (top.best[listed], right[listed], query_weights_of(results)[listed])
    return {"charts": {"calibration": charts.calibration_chart(*values)} if values[2].any() else {}}


def _mean(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None


def _stack(results: Results) -> dict[str, Any] | None:
    stack = results.figures["ladder"].get("stack") or {}
    importance = stack.get("importance")
    if not importance:
        return None
    used = sorted(((share, name) for name, share in importance.items() if share > 0), reverse=True)
    return {"features": len(importance), "trees": stack["rounds"][-1], "importance": used}


def _ablation(results: Results) -> dict[str, Any] | None:
    """What each part of the recipe adds; None where that was not measured. same: whether it is of these results."""
    if not (results.project.workspace.ablation(results.project.recipe.name) / "ablation.json").is_file():
        return None
    rows = read_ablation(results.project.workspace, results.project.recipe.name)
    return {"rows": rows, "same": rows[0]["map"] == results.rankers[-1]["map"]}


def _training(results: Results) -> dict[str, Any]:
    runs = {name: summary for name, summary in results.figures["runs"].items() if summary}
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for run in runs.values():
        losses = read_losses(results.project.workspace.run(run["experiment"], run["fold"]))
        if losses:
            curves.setdefault(run["experiment"], {})[FULL_DATA if run["fold"] is None else run["fold"]] = losses
    shown = {f"loss {name}": charts.loss_chart(folds) for name, folds in curves.items()}
    return {"sources": list(results.project.recipe.sources), "runs": runs, "charts": shown}


def _leaderboard(results: Results) -> dict[str, Any] | None:
    """Submissions with a leaderboard score; None where there is none."""
    records = scored(read_log(log_path(results.project)), results.project.competition.name)
    if not records:
        return None
    return {"lines": gap_lines(records), "charts": {"leaderboard": charts.leaderboard_chart(records)}}


def _matches(results: Results, folder: Path) -> dict[str, Any] | None:
    """Matched keypoints of a few queries; None where the recipe has no local matching."""
    project, local = results.project, results.project.recipe.combine.local_matching
    if local is None:
        return None
    keypoints = project.workspace.local(local_name(local))
    if not (keypoints / "points.npy").is_file():
        return {"pairs": None}
    described = read_described(keypoints, results.images, local.features)
    matcher = matcher_of(described, results.images, local, project.settings.weights)
    chosen = choose_examples(results.final, project.competition.unknown, MATCHED)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for kind in ("right", "wrong"):
        found = (match_example(example, results, described, local, matcher) for example in chosen[kind])
        pairs[kind] = [_write_pair(pair, results, local.size, folder) for one in found for pair in one]
    return {"pairs": pairs}


def _write_pair(pair: MatchedPair, results: Results, size: int, folder: Path) -> dict[str, Any]:
    from PIL import Image

    root, name = results.project.competition.root, results.images["image"]
    file = f"matches-{pair.query}-{pair.row}.jpg"
    drawn = draw_image_pair(results.images, root, (pair.query, pair.row), pair.matches, size)
    Image.fromarray(drawn).save(folder / file, quality=_QUALITY, subsampling=0)  # thin lines keep their colour
    return {
        "file": file,
        "query": name.iloc[pair.query],
        "image": name.iloc[pair.row],
        "identity": pair.identity,
        "right": pair.right,
        "line": matches_line(pair.matches),
    }


def _paths(results: Results, found: FoldPaths | None) -> dict[str, Any]:
    if found is None:
        return {"found": None, "source": best_single_features(results)[0]}
    return {"found": found, "strips": [_strip(path, found, results) for path in found.paths]}


def _strip(path: GraphPath, found: FoldPaths, results: Results) -> list[dict[str, Any]]:
    """The images of one path; `step`: similarity to the next one, None for the last."""
    identity, queries = results.images["identity"].to_numpy(), set(found.part.rows.tolist())
    return [
        {
            "row": row,
            "name": results.images["image"].iloc[row],
            "identity": identity[row],
            "role": "query" if place == 0 else "other query" if row in queries else "gallery",
            "right": None if place == 0 else identity[row] == identity[path.rows[0]],
            "step": step,
        }
        for place, (row, step) in enumerate(zip(path.rows, [*path.similarity, None], strict=True))
    ]


def _folds(results: Results) -> list[dict[str, Any]]:
    table = fold_table(results.folds, results.project.competition.unknown)
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _settings(results: Results) -> dict[str, str]:
    """Title -> YAML of the recipe and of each experiment."""
    settings = results.figures["settings"]
    blocks = {f"recipe {results.figures['recipe']}": settings["recipe"]}
    blocks |= {f"experiment {item['name']}": item for item in settings["experiments"]}
    return {
        title: yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        for title, content in blocks.items()
    }
