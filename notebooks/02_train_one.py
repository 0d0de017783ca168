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
# One run is one experiment trained on one fold. This notebook shows its settings, the images that the network is
# trained on, its log, and how well it identifies the images of the fold that it was not trained on. A run that is up
# to date is not trained again.

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
from whaleid.pipeline.data_stages import read_cache
from whaleid.pipeline.plan import count_images, plan_lines
from whaleid.pipeline.runner import Only, run
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.report.grid import draw_grid
from whaleid.report.thumbnails import thumbnails

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)
experiment, fold = project.experiments[0], project.folds[0]

# %% [markdown]
# ## The plan
#
# What the whole recipe would train (`whaleid plan`), and the main settings of this experiment. All settings, each with
# a comment, are in `configs/experiments/default.yaml`.

# %%
print("\n".join(plan_lines(project, count_images(project))))

# %%
settings = experiment.model_dump(mode="json", include={"model", "head", "image", "train"})
print(f"# {experiment.name}\n" + yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110))

# %% [markdown]
# ## Augmentation
#
# One image from the cache, and seven random augmentations of it: rotated, shifted, with other brightness and with
# parts removed.

# %%
run(project, "folds")
run(project, "cache")
images, folds = read_images(project.workspace), read_folds(project.workspace)
cache = read_cache(project.workspace, experiment)
items = training_items(images, folds, fold, experiment, project.competition.unknown)
print(f"{len(items):,} images of {len(items.classes):,} classes, {cache.size[0]} x {cache.size[1]} pixels")
augment = Augmentation(experiment.augment, cache.size)
original = cache.read(int(items.rows[0]))
shown = [original, *(augment(original, seed) for seed in range(7))]
draw_grid(shown, ["in the cache", *(f"seed {seed}" for seed in range(7))], columns=4)

# %% [markdown]
# ## Train
#
# On the sample this takes minutes on two cores. To follow the log, run `tail -f
# work/<competition>/runs/<experiment>/fold<k>/log.jsonl` in another terminal, or `tensorboard --logdir` on the same
# folder.

# %%
only = Only(experiment.name, fold)
done = run(project, "train", only=only)
folder = project.workspace.run(experiment.name, fold)
print("trained now" if done else "was up to date", "in", folder)

# %% [markdown]
# ## Its log
#
# The log has a line every few steps and one for each epoch. The loss should fall and then flatten with the learning
# rate. If the gradient norm grows, the learning rate is too high.

# %%
columns = ["kind", "step", "epoch", "loss", "lr", "gradient_norm", "seconds"]  # a very short run has no step lines
log = pd.read_json(folder / "log.jsonl", lines=True).reindex(columns=columns)
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
# The run embeds every image. The fold's queries of known identity are then compared with the images of the other
# folds: by nearest neighbours, and by the network's class probabilities. (The ladder in the next notebook also scores
# unknown queries, so its figures differ from these.)

# %%
run(project, "features", only=only)
protocol = read_protocol(images, folds, project.competition, [fold])
source = Source(experiment.name, {fold: project.workspace.features(experiment.name, fold)})
part, known = protocol.parts[0], protocol.parts[0].truth >= 0
rankings = rank_source(source, RankerContext(protocol, project.recipe.combine, images=images))
for ranking in rankings:
    rank = rank_of_truth(ranking.oof[0].codes[known], part.truth[known])
    print(score_ranks(rank, protocol.k).line(f"{ranking.name}, {known.sum():,} known queries", interval=True))

# %% [markdown]
# Top: queries. Bottom: a photograph of the first guess by nearest neighbours.

# %%
guessed = rankings[0].oof[0]
queries = known.nonzero()[0][:6]
first = guessed.codes[queries, 0]
first_images = [int(part.gallery[part.gallery_codes == code][0]) for code in first]
names = protocol.classes
titles = [f"query: {names[part.truth[query]]}" for query in queries] + [f"guess: {names[code]}" for code in first]
marks = [None] * len(queries) + (first == part.truth[queries]).tolist()
pixels = thumbnails(images, [*part.rows[queries].tolist(), *first_images], project.competition.root)
draw_grid(pixels, titles, columns=len(queries), right=marks)

# %% [markdown]
# Next: [read the ensemble](03_read_the_ensemble.ipynb).
