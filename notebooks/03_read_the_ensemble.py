# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Read the ensemble
#
# The ladder of the recipe, what each source adds, and the queries that are answered wrongly. Run `make leaderboard`
# first: otherwise this notebook trains every missing run.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display
from PIL import Image as Picture

from whaleid.ensemble.summary import ladder_lines
from whaleid.features.files import read_features
from whaleid.notebooks import notebook_project
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.runner import run
from whaleid.pipeline.sources import sources
from whaleid.report.examples import add_gallery_images, choose_examples
from whaleid.report.explain import write_explanations
from whaleid.report.grid import draw_grid
from whaleid.report.image_map import image_map
from whaleid.report.inputs import read_results, read_top_guesses
from whaleid.report.plots import draw_ladder
from whaleid.report.thumbnails import thumbnails
from whaleid.retrieval.index import search

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## The ladder
#
# Each ranker orders the identities for every query, and is scored out of fold: every query is ranked by models that
# were fitted without it. The gain over the best single network is measured on the same queries, so its interval is
# paired. If the interval contains 0, the ranker has not been shown to be better.

# %%
run(project, "ladder")
figures = require_figures(project)
results = read_results(project)
print("\n".join(ladder_lines(figures, results.solution)))

# %%
plot = project.workspace.root / "notebooks" / "ladder.png"
plot.parent.mkdir(parents=True, exist_ok=True)
draw_ladder(results.rankers, results.solution, plot)
Image(filename=str(plot))

# %% [markdown]
# ## What each source adds
#
# Each cell: of the queries whose first guess is wrong by the ranker of the row, the share that the ranker of the
# column gets right. Rankers that make the same mistakes add little to each other; a weaker one that is right where
# others fail helps the blend. In the table below, `only this one`: queries that only this source gets right; `weight`:
# its weight in the blend.

# %%
folder = project.workspace.candidates(project.recipe.name)
names = [ranker["name"] for ranker in results.rankers]
top = {name: read_top_guesses(folder / "oof.parquet", name, results.protocol) for name in names}
right = pd.DataFrame({name: found.guesses[:, 0] == found.truth for name, found in top.items()})
square = pd.DataFrame({name: [right[name][~right[row]].mean() for row in right] for name in right}, index=right.columns)
figure, axes = plt.subplots(figsize=(1.6 + 0.62 * len(square), 1.2 + 0.42 * len(square)), layout="constrained")
axes.imshow(square, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for (row, column), value in np.ndenumerate(square.to_numpy()):
    if row != column and not np.isnan(value):
        axes.text(
            column, row, f"{value:.0%}", ha="center", va="center", fontsize=7, color="white" if value > 0.5 else "k"
        )
axes.set_xticks(range(len(square)), square.columns, rotation=30, ha="right", fontsize=7)
axes.set_yticks(range(len(square)), square.index, fontsize=7)
axes.set(xlabel="is right", ylabel="where this one is wrong")
plt.show()

# %%
single = {
    ranker["name"]: ranker for ranker in results.rankers if ranker["kind"] in ("knn", "logits", "siamese", "local")
}
of_source = {name: name.removesuffix(" logits").removesuffix(" siamese") for name in single}
solved = right[list(single)].T.groupby(of_source).any().T
rankers = pd.DataFrame(single).T.groupby(of_source)
table = pd.DataFrame({"best MAP": rankers["map"].max(), "weight": rankers["weight"].sum()}).astype(float)
table["first guess right"] = solved.mean()
table["only this one"] = solved[solved.sum(axis=1) == 1].sum()
print(f"{len(solved):,} queries; {(~solved.any(axis=1)).sum():,} that no source gets right with its first guess")
table.round(3)

# %% [markdown]
# To measure what the recipe would lose without one of its parts, run `whaleid ablation`: it fits the recipe again
# without each part, from the saved features.

# %% [markdown]
# ## By number of gallery images
#
# The score by the number of gallery images of the query's identity. Unknown queries are a slice of their own.

# %%
final, best = results.rankers[-1], results.best_single
slices = pd.DataFrame(
    {ranker["name"]: {name: part["map"] for name, part in ranker["slices"].items()} for ranker in (best, final)}
)
slices.plot.bar(figsize=(7, 2.6), rot=0, ylabel=f"MAP@{figures['ladder']['k']}", ylim=(0, 1)).legend(frameon=False)
plt.show()
pd.Series({name: part["queries"] for name, part in final["slices"].items()}, name="queries").to_frame().T

# %% [markdown]
# ## Errors
#
# Left: a query. Then the first guesses of the final ranker, each with the photograph of that individual that is
# nearest to the query. The most confident mistakes come first: they are worth a look, because the label may be wrong.

# %%
chosen = choose_examples(results.final, project.competition.unknown, count=3)
near = next((source.folds for source in sources(project) if source.name == best["name"].split(" ")[0]), {})
for kind, title in {
    "wrong": "confident, wrong",
    "missed": "known, called unknown",
    "right": "confident, right",
}.items():
    for example in add_gallery_images(chosen[kind], results.protocol, results.images, near):
        guesses = [guess for guess in example.guesses if guess.row is not None]
        rows = [example.row, *(guess.row for guess in guesses)]
        titles = [f"{title}\nis {example.truth}", *(f"{guess.score:.3f}\n{guess.identity}" for guess in guesses)]
        marks = [None, *(guess.right for guess in guesses)]
        display(draw_grid(thumbnails(results.images, rows, project.competition.root), titles, columns=4, right=marks))

# %% [markdown]
# ## Nearest neighbours
#
# A query of a known individual, if possible one that the final ranker gets wrong, with its five nearest gallery images
# by every source: the images that each network finds similar.

# %%
examples = [example for kind in ("wrong", "missed", "right") for example in chosen[kind]]
query = next((example for example in examples if example.truth != project.competition.unknown), examples[0])
part = next(part for part in results.protocol.parts if part.fold == query.fold)
for source in sources(project)[:6]:  # a large recipe has dozens
    features = read_features(source.folds[query.fold], results.images, logits=False).embeddings
    similarity, nearest = search(features[[query.row]], features[part.gallery], 5)
    names = results.protocol.classes[part.gallery_codes[nearest[0]]]
    pixels = thumbnails(results.images, [query.row, *part.gallery[nearest[0]].tolist()], project.competition.root)
    titles = [f"{value:.3f}\n{name}" for value, name in zip(similarity[0], names, strict=True)]
    marks = (names == results.images["identity"][query.row]).tolist()
    display(draw_grid(pixels, [f"{source.name}\nis {query.truth}", *titles], columns=6, right=[None, *marks]))

# %% [markdown]
# ## Why these two?
#
# The first of these queries and the photograph of its best named guess, as the recipe's first network sees them
# (`whaleid explain`). Green lines: keypoints that agree in geometry. The similarity map adds up to the similarity.
# Saliency is a gradient. A map of random weights stands beside it: a map whose similarity while it is deleted is not
# below the control's should not be believed.

# %%
example = add_gallery_images(examples[:1], results.protocol, results.images, near)[0]
guess = next(guess for guess in example.guesses if guess.row is not None)
explained = plot.with_name("explain.png")
names = results.images["image"][example.row], results.images["image"][guess.row]
(lines,) = write_explanations(project, names[0], {names[1]: explained})
print("\n".join(lines[:-1]))
picture, small = Picture.open(explained).convert("RGB"), explained.with_suffix(".jpg")
picture.thumbnail((700, 1200))
picture.save(small, quality=75)  # a tenth of the bytes
Image(filename=str(small))

# %% [markdown]
# ## The map
#
# Labelled images as the best single network of the first fold places them, by t-SNE: near is similar, far apart means
# little. Large dots are that fold's queries, which the network was not trained on; crosses are those whose first guess
# is wrong.

# %%
placed = image_map(results)
wrong = set(results.final.rows[results.final.guesses[:, 0] != results.final.truth].tolist())
identity = results.images["identity"].astype("category").cat.codes.to_numpy()[placed.rows]
is_query = np.arange(len(placed.rows)) < placed.queries
is_wrong = is_query & np.isin(placed.rows, list(wrong))
figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
for chosen, look in (
    (~is_query, {"s": 6, "alpha": 0.5}),
    (is_query & ~is_wrong, {"s": 24}),
    (is_wrong, {"s": 36, "marker": "x"}),
):
    axes.scatter(*placed.points[chosen].T, c=identity[chosen], cmap="turbo", vmin=0, vmax=identity.max(), **look)
axes.set(xticks=[], yticks=[], title=f"{placed.source}, fold {placed.fold}; a colour for each identity")
plt.show()

# %% [markdown]
# `make report` writes a page of all results. Next: [the kernel for Kaggle](04_kaggle_inference.ipynb).
