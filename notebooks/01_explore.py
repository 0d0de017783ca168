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
# # 1. A look at the data
#
# Which individuals the photographs show, how often, and how the images are assigned to folds. Nothing is trained.
#
# `make sample` makes the sample. For another competition, change its name in the second cell.

# %%
import os

import matplotlib.pyplot as plt

from whaleid.data.check import check_data
from whaleid.data.folds import fold_table
from whaleid.notebooks import notebook_project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.report.grid import draw_grid
from whaleid.report.thumbnails import thumbnails

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## Checking the data
#
# The same check as `whaleid data check`: it reads every image and reports what is missing, unreadable, listed twice or
# labelled in two ways.

# %%
print("\n".join(check_data(project.competition).lines()))

# %% [markdown]
# ## The images table
#
# One row per image. Images of one `group` must share a fold: copies of one photograph, or images of one encounter if
# the competition names a column for it.

# %%
run(project, "folds")
images, folds = read_images(project.workspace), read_folds(project.workspace)
images.head()

# %% [markdown]
# ## Individuals
#
# The individual with the most photographs. A model has to learn what stays the same from one to the next.

# %%
unknown = project.competition.unknown
labelled = images[images["split"] == "train"]
named = labelled[labelled["identity"] != unknown]
sizes = named["identity"].value_counts()
rows = named.index[named["identity"] == sizes.index[0]][:10]
draw_grid(thumbnails(images, rows, project.competition.root), [images["image"][row] for row in rows], columns=5)

# %% [markdown]
# Individuals with a single photograph: a network sees each of them once, and must still recognise it.

# %%
rows = named.index[named["identity"].isin(sizes.index[sizes == 1])][:6]
rows = rows if len(rows) else named.index[:6]  # a competition may have none
draw_grid(thumbnails(images, rows, project.competition.root), [images["identity"][row] for row in rows])

# %% [markdown]
# ## Class sizes
#
# Most such data sets have a long tail: many individuals with few images. That is why a classifier alone is not enough,
# and why scores are also given by the number of gallery images of an individual.

# %%
counts = sizes.value_counts().sort_index()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
left.bar(counts.index, counts.to_numpy())
left.set(xlabel="images of an identity", ylabel="identities", yscale="log")
right.plot(range(1, len(sizes) + 1), sizes.cumsum().to_numpy() / len(named))
right.set(xlabel="identities, the largest first", ylabel="share of the labelled images", ylim=(0, 1.02))
plt.show()
print(
    f"{len(sizes):,} identities, {len(named):,} images of them; median {sizes.median():.0f}, most {sizes.max()}, "
    f"one image only: {(sizes == 1).mean():.0%}"
)
if unknown is not None:
    print(f"labelled {unknown}: {len(labelled) - len(named):,} of {len(labelled):,} images")

# %% [markdown]
# ## Folds
#
# The queries of a fold are compared with the labelled images of the other folds. `unseen`: the identity has no image
# there, so the unknown label is the right answer. The folds should be similar.

# %%
fold_table(folds, unknown)

# %% [markdown]
# ## The same photograph twice
#
# A copy of a query in the gallery would give the answer away, so copies share a fold. Over each image: its label and
# its fold (test images have none).

# %%
copies = images[images.groupby("group")["image"].transform("size") > 1].sort_values("group")
print(f"{len(copies):,} images in {copies['group'].nunique():,} groups")
fold_of = folds.set_index("image")["fold"]
shown = copies.index[:12]
labels = images["identity"].where(images["split"] == "train", "test")
titles = [f"{labels[row]}\nfold {fold_of.get(images['image'][row], '-')}" for row in shown]
draw_grid(thumbnails(images, shown, project.competition.root), titles, columns=4) if len(shown) else None

# %% [markdown]
# Next: [train one run](02_train_one.ipynb).
