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
# The ladder of the recipe, what each source adds, and the queries that go wrong. Run `make leaderboard` first: what
# is missing is trained here otherwise, run after run.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display

from whaleid.ensemble.summary import ladder_lines
from whaleid.features.files import read_features
from whaleid.notebooks import notebook_project
from whaleid.pipeline.stages import sources
from whaleid.pipeline.submission import ensemble_stage
from whaleid.report.examples import choose, with_pictures
from whaleid.report.grid import draw_grid, views
from whaleid.report.material import read_answers, read_material
from whaleid.report.pictures import draw_ladder
from whaleid.retrieval.index import search

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## The ladder
#
# Every rung is one way of answering, scored out of fold: nothing that a query meets ever saw it. The gain is measured
# on the same queries as the best single network, so that its interval is paired; where it holds 0, the rung has not
# been shown to be better.

# %%
figures = ensemble_stage(project, 1, [])
material = read_material(project)
print("\n".join(ladder_lines(figures, material.solution)))

# %%
picture = project.workspace.root / "notebooks" / "ladder.png"
picture.parent.mkdir(parents=True, exist_ok=True)
draw_ladder(material.rungs, material.solution, picture)
Image(filename=str(picture))

# %% [markdown]
# ## What each source gives
#
# Read a row of the square: of the queries whose first guess is wrong by this rung, the share that the rung of the
# column has right. Rungs that are wrong together add nothing to one another, however good; a weak one that is right
# where the others fail is worth its weight. `alone`: queries that only this source's rungs have right. `weight`: in the
# final blend, by itself (rungs that join the sources have theirs beside it).

# %%
folder = project.workspace.candidates(project.recipe.name)
answers = {
    rung["name"]: read_answers(folder / "oof.parquet", rung["name"], material.protocol) for rung in material.rungs
}
right = pd.DataFrame({name: answer.guesses[:, 0] == answer.truth for name, answer in answers.items()})
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
single = {rung["name"]: rung for rung in material.rungs if rung["kind"] in ("knn", "logits", "siamese", "local")}
of_source = {name: name.removesuffix(" logits").removesuffix(" siamese") for name in single}
solved = right[list(single)].T.groupby(of_source).any().T
rungs = pd.DataFrame(single).T.groupby(of_source)
table = pd.DataFrame({"best MAP": rungs["map"].max(), "weight": rungs["weight"].sum()}).astype(float)
table["first guess right"] = solved.mean()
table["alone"] = solved[solved.sum(axis=1) == 1].sum()
print(f"{len(solved):,} queries; {(~solved.any(axis=1)).sum():,} that no source has right at the first guess")
table.round(3)

# %% [markdown]
# What a recipe would lose without each of its parts, re-fitted without it, is another question: `make ablation` answers
# it from the same saved features.

# %% [markdown]
# ## By what the gallery knows
#
# The score by the number of gallery images of the individual that is asked about. The unknown label is a slice of its
# own.

# %%
final, best = material.rungs[-1], material.single
slices = pd.DataFrame(
    {rung["name"]: {name: part["map"] for name, part in rung["slices"].items()} for rung in (best, final)}
)
slices.plot.bar(figsize=(7, 2.6), rot=0, ylabel=f"MAP@{figures['ladder']['k']}", ylim=(0, 1)).legend(frameon=False)
plt.show()
pd.Series({name: part["queries"] for name, part in final["slices"].items()}, name="queries").to_frame().T

# %% [markdown]
# ## Errors
#
# Queries out of fold (left) with the first guesses of the final rung, each with the photograph of that individual that
# is nearest to the query. First those that are surely wrong: their mistakes teach most. Labels can be wrong, too.

# %%
chosen = choose(material.final, project.competition.unknown, count=3)
near = next((source.folds for source in sources(project) if source.name == best["name"].split(" ")[0]), {})
for kind, title in {"wrong": "surely wrong", "missed": "known, but called unknown", "right": "surely right"}.items():
    for example in with_pictures(chosen[kind], material.protocol, material.images, near):
        guesses = [guess for guess in example.guesses if guess.row is not None]
        rows = [example.row, *(guess.row for guess in guesses)]
        titles = [f"{title}\nis {example.truth}", *(f"{guess.score:.3f}\n{guess.identity}" for guess in guesses)]
        marks = [None, *(guess.right for guess in guesses)]
        display(draw_grid(views(material.images, rows, project.competition.root), titles, columns=4, right=marks))

# %% [markdown]
# ## Nearest neighbours
#
# One query of an individual that the gallery holds, and that the final rung has wrong (if there is one), with its five
# nearest gallery images by every source: what each network takes for alike.

# %%
asked = [example for kind in ("wrong", "missed", "right") for example in chosen[kind]]
query = next((example for example in asked if example.truth != project.competition.unknown), asked[0])
part = next(part for part in material.protocol.parts if part.fold == query.fold)
for source in sources(project)[:6]:  # a large recipe has dozens
    features = read_features(source.folds[query.fold], material.images, logits=False).embeddings
    likeness, places = search(features[[query.row]], features[part.gallery], 5)
    names = material.protocol.classes[part.gallery_codes[places[0]]]
    pictures = views(material.images, [query.row, *part.gallery[places[0]].tolist()], project.competition.root)
    titles = [f"{value:.3f}\n{name}" for value, name in zip(likeness[0], names, strict=True)]
    marks = (names == material.images["identity"][query.row]).tolist()
    display(draw_grid(pictures, [f"{source.name}\nis {query.truth}", *titles], columns=6, right=[None, *marks]))

# %% [markdown]
# The whole page, for colleagues: `make report`. Next: [the kernel for Kaggle](04_kaggle_inference.ipynb).
