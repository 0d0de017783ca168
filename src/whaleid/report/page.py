"""The page of a recipe's results: `report/<recipe>/index.html` and its pictures, a folder that stands by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from whaleid.data.folds import fold_table
from whaleid.ensemble.summary import round_lines
from whaleid.ensemble.protocol import FULL_DATA
from whaleid.pipeline.project import Project
from whaleid.pipeline.pseudo_labels import answered
from whaleid.report import pictures
from whaleid.report.examples import Example, Guess, choose, shown_rows, with_pictures
from whaleid.report.markup import Markup, bar, document, join, picture, section, table, tag
from whaleid.report.material import GUESSES, StackInputs, features_of_single, read_losses, read_material
from whaleid.report.pairs import matched_pairs
from whaleid.report.paths import paths_section
from whaleid.utils.files import atomic_path

SECTIONS = {
    "ladder": "The ladder",
    "slices": "By size of the identity",
    "unknown": "The unknown identity",
    "stack": "The learned order",
    "training": "Training",
    "right-and-wrong": "Right and wrong",
    "matches": "Matched keypoints",
    "paths": "Paths",
    "folds": "Folds",
    "settings": "Settings",
}


def write_report(project: Project) -> Path:
    """Write the report of a recipe whose ensemble has been made; returns the page's path.

    Raises WhaleidError where there are no results yet.
    """
    material = read_material(answered(project))
    out = project.workspace.report(project.recipe.name)
    with atomic_path(out) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(_page(material, folder), encoding="utf-8")
    return out / "index.html"


def _page(material: StackInputs, folder: Path) -> Markup:
    """The whole page; its pictures are drawn into `folder`."""
    bodies = {
        "ladder": _ladder(material, folder),
        "slices": _slices(material),
        "unknown": _unknown(material, folder),
        "training": _training(material, folder),
        "right-and-wrong": _right_and_wrong(material, folder),
        "paths": paths_section(material, folder),
        "folds": _folds(material),
        "settings": _settings(material),
    }
    importance = (material.figures["ladder"].get("stack") or {}).get("importance")
    if importance:
        bodies["stack"] = _stack(importance, folder)
    if material.project.recipe.combine.local is not None:
        bodies["matches"] = matched_pairs(material, folder)
    bodies = {name: bodies[name] for name in SECTIONS if name in bodies}
    links = tag("nav", *(tag("a", SECTIONS[name], href=f"#{name}") for name in bodies))
    title = f"{material.figures['competition']}: {material.figures['recipe']}"
    parts = (section(SECTIONS[name], name, body) for name, body in bodies.items())
    return document(title, _header(material, title), links, *parts)


# ------------------------------------------------------------------------------------------------------ header


def _header(material: StackInputs, title: str) -> Markup:
    final, ladder = material.rungs[-1], material.figures["ladder"]
    images = material.images
    labelled = material.folds["identity"]
    identities = labelled[labelled != material.project.competition.unknown].nunique()
    facts = [(f"MAP@{ladder['k']}, out of fold", _score(final))]
    if final["name"] in material.solution:
        facts.append((f"MAP@{ladder['k']}, solution", _score(material.solution[final["name"]].as_json())))
    test = int((images["split"] == "test").sum())
    facts += [
        ("labelled images", f"{len(labelled):,}"),
        ("identities", f"{identities:,}"),
        ("test images", f"{test:,}"),
    ]
    shown = tag("div", *(tag("div", tag("b", value), name) for name, value in facts), class_="facts")
    made = f"recipe {material.figures['recipe']}, commit {material.figures['commit'] or 'not known'}"
    return join([tag("header", tag("h1", title), tag("p", made, class_="quiet"), shown), _notices(material)])


def _notices(material: StackInputs) -> Markup:
    said = []
    if material.stale:
        said.append(
            "These results were made from other settings, other data or by another version than there are now; "
            "run `make ensemble` to bring them up to date."
        )
    if material.rungs[-1]["optimistic"]:
        said.append("The score is optimistic: something in it was chosen by looking at the fold that is scored.")
    if full := material.figures["ladder"].get("full"):
        said.append(
            f"Trained on all labelled images too, for the test images alone: {', '.join(full)}. Out of fold these are "
            "worth what their folds' models are."
        )
    said += round_lines(material.figures)
    return join(tag("p", line, class_="notice") for line in said)


def _score(figures: dict[str, Any]) -> str:
    return f"{figures['map']:.5f} ± {(figures['high'] - figures['low']) / 2:.5f}"


# ------------------------------------------------------------------------------------------------------ ladder


def _ladder(material: StackInputs, folder: Path) -> Markup:
    ladder = material.figures["ladder"]
    header = ["rung", "kind", f"MAP@{ladder['k']} (out of fold)", "95 % interval", "gain over best single"]
    header += [f"MAP@{ladder['k']} (solution)"] * bool(material.solution) + ["weight in the blend"]
    header += ["note"] * any(rung["optimistic"] for rung in material.rungs)
    rows = [_ladder_row(rung, material) for rung in material.rungs]
    pictures.draw_ladder(material.rungs, material.solution, folder / "ladder.png")
    notes = [
        f"Every rung is one way of answering, scored on the {ladder['queries']:,} labelled images by what never saw "
        "them. Intervals are 95 %, bootstrapped over queries; a gain is measured on the same queries as the best "
        "single network, so that its interval is paired. The last rung is the answer that is submitted."
    ]
    if material.project.competition.unknown_share is not None:
        share = _percent(material.project.competition.unknown_share)
        notes.append(f"Unknown queries weigh {share} of the whole, their expected share of the test images.")
    if ladder["unanswerable"]:
        notes.append(
            f"{ladder['unanswerable']:,} of the {ladder['queries']:,} queries are not scored: no other image of "
            "their identity is in the gallery, and the competition has no unknown label."
        )
    if not len(material.protocol.test_rows):
        notes.append("The competition has no test images.")
    elif not material.solution:
        notes.append("There is no solution to score the test images against.")
    shown = picture("ladder.png", "MAP of every rung with its interval, as in the table below")
    return join([*(tag("p", note) for note in notes), shown, table(header, rows, strong=len(rows) - 1)])


def _ladder_row(rung: dict[str, Any], material: StackInputs) -> list[object]:
    gain, weight = rung["gain"], rung["weight"]
    row: list[object] = [rung["name"], rung["kind"], f"{rung['map']:.5f}", f"{rung['low']:.4f} to {rung['high']:.4f}"]
    row.append("best single" if gain is None else f"{gain['gain']:+.5f} [{gain['low']:+.4f}, {gain['high']:+.4f}]")
    if material.solution:
        score = material.solution.get(rung["name"])
        row.append("" if score is None else f"{score.map:.5f}")
    row.append("" if weight is None else "dropped" if weight == 0 else f"{weight:.2f}")
    return [*row, "optimistic"] if rung["optimistic"] else row


# ------------------------------------------------------------------------------------------------------ slices


def _slices(material: StackInputs) -> Markup:
    final, single = material.rungs[-1], material.single
    header = ["gallery images of the true identity", "queries"]
    header += [f"final: {final['name']}", f"best single: {single['name']}"]
    rows: list[list[object]] = []
    for name, part in final["slices"].items():
        scores = part["map"], single["slices"][name]["map"]
        cells = [Markup(f"{score:.4f}{bar(score)}") for score in scores]
        rows.append([name, f"{part['queries']:,}", *cells])
    if not rows:
        return tag("p", "The results hold no slices.")
    said = f"MAP@{final['k']} out of fold, by how much the gallery knows of the individual that is asked about."
    return join([tag("p", said), table(header, rows)])


# ----------------------------------------------------------------------------------------- the unknown identity


def _unknown(material: StackInputs, folder: Path) -> Markup:
    competition, limits = material.project.competition, material.rungs[-1]["unknown"]
    if competition.unknown is None or limits is None:
        return tag("p", "The competition has no unknown label: every query's identity is in the training data.")
    answers = material.final
    called = answers.guesses[:, 0] == competition.unknown
    asked = limits["test_first"] is not None  # whether there are test images
    share = competition.unknown_share
    weighted = "" if share is None else " (weighted to that share)"
    wanted: list[tuple[bool, str, str]] = [
        (share is not None, "expected share of unknown among the test images", _percent(share)),
        (True, f"first guesses that are unknown, out of fold{weighted}", _percent(limits["oof_first"])),
        (asked, "first guesses that are unknown, test", _percent(limits["test_first"])),
        (True, "unknown queries called unknown, out of fold", _percent(_mean(called[~answers.known]))),
        (True, "known queries called unknown, out of fold", _percent(_mean(called[answers.known]))),
        (asked, "threshold used on the test images (scores averaged over folds)", f"{limits['used']:.4f}"),
        (True, "threshold tuned on all folds", f"{limits['tuned']:.4f}"),
    ]
    rows: list[list[object]] = [[name, value] for told, name, value in wanted if told]
    by_fold = {int(fold): value for fold, value in limits["by_fold"].items() if value is not None}
    for fold, value in by_fold.items():
        rows.append([f"threshold of fold {fold}, tuned on the others", f"{value:.4f}"])
    said = f"{competition.unknown} is guessed before the first identity whose score lies under a threshold."
    parts = [tag("p", said), table(["", "final rung"], rows)]
    known, unknown = (answers.best[mask] for mask in (answers.known, ~answers.known))
    known, unknown = known[known == known], unknown[unknown == unknown]
    if len(known) + len(unknown):
        pictures.draw_scores(known, unknown, list(by_fold.values()), limits["tuned"], folder / "unknown.png")
        parts.append(picture("unknown.png", "Histogram of the best scores of known and unknown queries"))
        said = "Best score of an identity for every query out of fold."
        if material.figures["ladder"].get("stack"):
            said += " Scores of the learned order are log-odds against the unknown identity: 0 is as likely as that."
        parts.append(tag("p", said, class_="quiet"))
    return join([*parts, *_shares(material, folder)])


def _shares(material: StackInputs, folder: Path) -> list[Markup]:
    """The curve of the share of unknown, and how to read it; nothing where the results hold none."""
    ladder, expected = material.figures["ladder"], material.project.competition.unknown_share
    shares = ladder.get("shares")
    if not shares:
        return []
    if expected is None:
        expected = _mean(~material.final.known)
    pictures.draw_shares(shares, expected, ladder["k"], folder / "shares.png")
    ends = (_lost(point) for point in (shares[0], shares[-1]))
    said = (
        "How to read it: where the test set's share of unknown is not the expected one (dotted), the thresholds as "
        f"they are used lose the gap to the upper line, {' and '.join(ends)}; both lines are out of fold, so that near "
        "the expected share either may lie above the other by chance."
    )
    return [picture("shares.png", f"MAP@{ladder['k']} by the share of unknown among the queries"), tag("p", said)]


def _lost(point: dict[str, float]) -> str:
    lost = point["best"] - point["kept"]
    return f"{f'{lost:.4f}' if lost > 0 else 'nothing'} at {_percent(point['share'])}"


def _mean(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------- the learned order


def _stack(importance: dict[str, float], folder: Path) -> Markup:
    pictures.draw_importance(importance, folder / "importance.png")
    said = (
        "What the learned order of candidates (the stack) looks at: each feature's share of the gain of all splits, in "
        "the models that order the test set. Features say the same thing in many ways and share its gain, so a short "
        "bar is no proof that a feature could be left out; `make ablation` measures that."
    )
    return join([tag("p", said), picture("importance.png", "Share of the gain of every feature of the stack")])


# ---------------------------------------------------------------------------------------------------- training


def _training(material: StackInputs, folder: Path) -> Markup:
    runs = {name: summary for name, summary in material.figures["runs"].items() if summary}
    parts: list[Markup] = []
    if material.project.recipe.sources:
        names = ", ".join(material.project.recipe.sources)
        parts.append(tag("p", f"Features that were trained elsewhere: {names}."))
    if not runs:
        return join([*parts, tag("p", "The recipe trains nothing here, so there are no runs to show.")])
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for summary in runs.values():
        losses = read_losses(material.project.workspace.run(summary["experiment"], summary["fold"]))
        if losses:
            curves.setdefault(summary["experiment"], {})[FULL_DATA if summary["fold"] is None else summary["fold"]] = (
                losses
            )
    if curves:
        pictures.draw_losses(curves, folder / "training.png")
        parts.append(tag("p", "Mean training loss of each epoch, a line a fold."))
        parts.append(picture("training.png", "Training loss by epoch for every experiment"))
    else:
        parts.append(tag("p", "The runs' logs are not in the work folder, so there are no curves."))
    header = ["run", "epochs", "images seen", "classes", "last loss", "seconds", "images/s", "device", "precision"]
    return join([*parts, table(header, [_run_row(name, summary) for name, summary in runs.items()])])


def _run_row(name: str, run: dict[str, Any]) -> list[object]:
    loss, seconds = run["loss"], run["seconds"]
    epochs = f"{run['epochs']} (best: {run['best_epoch']})" if run.get("best_epoch") else run["epochs"]
    return [
        name,
        epochs,
        f"{run['images']:,}",
        f"{run['classes']:,}",
        "not finite" if loss is None else f"{loss:.4f}",
        f"{seconds:,.0f}",
        f"{run['images'] / seconds:,.1f}" if seconds else "",
        run["device"],
        "full" if run["precision"] == "no" else run["precision"],
    ]


# --------------------------------------------------------------------------------------------- right and wrong


def _right_and_wrong(material: StackInputs, folder: Path) -> Markup:
    project, protocol = material.project, material.protocol
    source, folders = features_of_single(material)
    chosen = choose(material.final, project.competition.unknown)
    chosen = {kind: with_pictures(examples, protocol, material.images, folders) for kind, examples in chosen.items()}
    rows = shown_rows(example for examples in chosen.values() for example in examples)
    pictures.write_views(material.images, rows, project.competition.root, folder)
    shown = f"the image of it that is nearest to the query by the embeddings of {source}"
    if not folders:
        shown = f"the first image of it in the gallery, as the features of {source} are not in the work folder"
    said = (
        f"Queries out of fold with the first {GUESSES} guesses of the final rung. Beside each guessed identity stands "
        f"{shown}. Green: the guess is right; red: it is wrong."
    )
    titles = {
        "right": "Surely right: the highest first scores that are right",
        "wrong": "Surely wrong: the highest first scores that are wrong",
        "missed": "Known, but called unknown: furthest under the threshold",
    }
    if project.competition.unknown is None:
        del titles["missed"]
    parts = [tag("p", said)]
    for kind, title in titles.items():
        sheets = [_sheet(example, material) for example in chosen[kind]] or [tag("p", "There is none.")]
        parts += [tag("h3", title), *sheets]
    return join(parts)


def _sheet(example: Example, material: StackInputs) -> Markup:
    name = material.images["image"].iloc[example.row]
    truth = example.truth or "an identity that is not in the gallery"
    query = tag(
        "figure",
        picture(pictures.view_name(example.row), f"query {name}"),
        tag("figcaption", f"query {name}", Markup("<br>"), tag("b", truth)),
    )
    guesses = (_guess(place, guess, material) for place, guess in enumerate(example.guesses, 1))
    return tag("div", query, *guesses, class_="sheet")


def _guess(place: int, guess: Guess, material: StackInputs) -> Markup:
    view: Markup = tag("div", "no picture", class_="none")
    caption: list[object] = [f"{place}. ", tag("b", guess.identity), f" {guess.score:.3f}"]
    if guess.row is not None:
        name = material.images["image"].iloc[guess.row]
        view = picture(pictures.view_name(guess.row), f"guess {place}: {guess.identity}")
        caption += [Markup("<br>"), name]
    said = "right" if guess.right else "wrong"
    return tag("figure", view, tag("figcaption", *caption, f" ({said})"), class_=said)


# ------------------------------------------------------------------------------------------ folds and settings


def _folds(material: StackInputs) -> Markup:
    counted = fold_table(material.folds, material.project.competition.unknown)
    names = ["images", "identities", "singletons", "unknown", "unseen"]
    header = ["fold", *names, "unknown share"]
    rows: list[list[object]] = []
    for row in counted.to_dict("records"):
        rows.append([row["fold"], *(f"{row[name]:,}" for name in names), _percent(row["unknown_share"])])
    said = (
        "Singletons: identities with one image in all. Unseen: images whose identity has no image in the other folds, "
        "unknown by the protocol. Unknown share: both, of the fold's images."
    )
    return join([table(header, rows), tag("p", said, class_="quiet")])


def _settings(material: StackInputs) -> Markup:
    settings = material.figures["settings"]
    blocks = [_details(f"recipe {material.figures['recipe']}", settings["recipe"])]
    blocks += [_details(f"experiment {item['name']}", item) for item in settings["experiments"]]
    return join(blocks)


def _details(title: str, content: dict[str, Any]) -> Markup:
    written = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return tag("details", tag("summary", title), tag("pre", written))
