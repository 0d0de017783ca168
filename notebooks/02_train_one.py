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
# # 2. Train one run
#
# One experiment on one fold: its settings, what the network is shown, its log, and how well it finds again the
# individuals of the fold that it never saw. A run that is up to date is not trained again.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import yaml

from whaleid.data.augmentation import Augmentation
from whaleid.data.samplers import training_items
from whaleid.ensemble.ladder import rank_source
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.ensemble.rankings import Source
from whaleid.evaluation.metrics import rank_of_truth, score_ranks
from whaleid.notebooks import notebook_project
from whaleid.pipeline.plan import plan_lines
from whaleid.pipeline.stages import cache_stage, features_stage, folds_stage, images_stage, jobs_stage, select_jobs
from whaleid.report.grid import draw_grid, views

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)
experiment, fold = project.experiments[0], project.folds[0]

# %% [markdown]
# ## The plan
#
# What the whole recipe would train (`make plan`), and the settings of this experiment that differ most from one to
# the next. All of them, with a comment each, are in `configs/experiments/default.yaml`.

# %%
print("\n".join(plan_lines(project, None, None, None)))

# %%
settings = experiment.model_dump(mode="json", include={"model", "head", "image", "train"})
print(f"# {experiment.name}\n" + yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110))

# %% [markdown]
# ## What the network sees
#
# An image as the cache holds it, and as it comes into seven batches: turned, moved, lit and damaged at random, a
# little differently each time.

# %%
images, folds, cache = images_stage(project), folds_stage(project), cache_stage(project, experiment)
items = training_items(images, folds, fold, experiment, project.competition.unknown)
print(f"{len(items):,} images of {len(items.classes):,} classes, {cache.size[0]} x {cache.size[1]} pixels")
augment = Augmentation(experiment.augment, cache.size)
original = cache.read(int(items.rows[0]))
shown = [original, *(augment(original, seed) for seed in range(7))]
draw_grid(shown, ["in the cache", *(f"seed {seed}" for seed in range(7))], columns=4)

# %% [markdown]
# ## Train
#
# On the sample this takes minutes on two cores. The log is written as it goes: from another window,
# `tail -f work/<competition>/runs/<experiment>/fold<k>/log.jsonl`, or `tensorboard --logdir` on the same folder.

# %%
done = jobs_stage(project, "train", 1, [], select_jobs(project, "train", experiment.name, fold))
run = project.workspace.run(experiment.name, fold)
print("trained now" if done else "was up to date", "in", run)

# %% [markdown]
# ## Its log
#
# A line every few steps, and one an epoch. The loss should fall and flatten as the learning rate does; a gradient
# norm that climbs says the rate is too high.

# %%
columns = ["kind", "step", "epoch", "loss", "lr", "gradient_norm", "seconds"]  # a very short run has no steps' lines
log = pd.read_json(run / "log.jsonl", lines=True).reindex(columns=columns)
steps, epochs = log[log["kind"] == "step"], log[log["kind"] == "epoch"]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
axes[0].plot(steps["step"], steps["loss"], alpha=0.5, label="steps")
axes[0].plot(epochs["step"], epochs["loss"], "o-", markersize=3, label="epochs")
axes[0].legend(frameon=False)
for place, column in enumerate(("lr", "gradient_norm"), start=1):
    axes[place].plot(steps["step"], steps[column])
for place, title in zip(axes, ("loss", "learning rate", "gradient norm"), strict=True):
    place.set(title=title, xlabel="step")
plt.show()
epochs[["epoch", "step", "loss", "seconds"]].tail(3)

# %% [markdown]
# ## How good is it?
#
# Every image is embedded by the run. The fold's queries of known identity then look for their like among the other
# folds' images, by nearest neighbours and by the network's own classes. (The ladder of the next notebook also places
# the unknown label, so that its figures differ from these.)

# %%
features_stage(project, experiment, fold)
protocol = read_protocol(images, folds, project.competition, [fold])
source = Source(experiment.name, {fold: project.workspace.features(experiment.name, fold)})
part, known = protocol.parts[0], protocol.parts[0].truth >= 0
rankings = rank_source(source, RankerContext(protocol, project.recipe.combine, images=images))
for ranking in rankings:
    rank = rank_of_truth(ranking.oof[0].codes[known], part.truth[known])
    print(score_ranks(rank, protocol.k).line(f"{ranking.name}, {known.sum():,} known queries", interval=True))

# %% [markdown]
# Queries, and under each the first guess by nearest neighbours with a photograph of that individual.

# %%
guessed = rankings[0].oof[0]
queries = known.nonzero()[0][:6]
first = guessed.codes[queries, 0]
beside = [int(part.gallery[part.gallery_codes == code][0]) for code in first]
names = protocol.classes
titles = [f"query: {names[part.truth[query]]}" for query in queries] + [f"guess: {names[code]}" for code in first]
marks = [None] * len(queries) + (first == part.truth[queries]).tolist()
pictures = views(images, [*part.rows[queries].tolist(), *beside], project.competition.root)
draw_grid(pictures, titles, columns=len(queries), right=marks)

# %% [markdown]
# Next: [read the ensemble](03_read_the_ensemble.ipynb).
