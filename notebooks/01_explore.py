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
# Who is in the photographs, how often, and how they are dealt into folds. Nothing is trained here.
#
# `make sample` draws the sample. Another competition is named in the second cell, or from outside:
# `make notebooks COMPETITION=...`.

# %%
import os

import matplotlib.pyplot as plt

from whaleid.data.check import check_data
from whaleid.data.folds import fold_table
from whaleid.notebooks import notebook_project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.report.grid import draw_grid, views

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## What there is
#
# The same report as `make check`: it reads every picture, and says what is missing, unreadable, listed twice or
# labelled in two ways.

# %%
print("\n".join(check_data(project.competition).lines()))

# %% [markdown]
# ## The images table
#
# One row an image. `group` holds together what must share a fold: copies of one photograph, and encounters where the
# competition names a column for them.

# %%
run(project, "folds")
images, folds = read_images(project.workspace), read_folds(project.workspace)
images.head()

# %% [markdown]
# ## Individuals
#
# The individual with most photographs. What stays the same from one to the next is all that there is to learn.

# %%
unknown = project.competition.unknown
labelled = images[images["split"] == "train"]
named = labelled[labelled["identity"] != unknown]
sizes = named["identity"].value_counts()
rows = named.index[named["identity"] == sizes.index[0]][:10]
draw_grid(views(images, rows, project.competition.root), [images["image"][row] for row in rows], columns=5)

# %% [markdown]
# And one photograph each of individuals that have no other: a network sees such a face once, and is asked for it
# anyway.

# %%
rows = named.index[named["identity"].isin(sizes.index[sizes == 1])][:6]
rows = rows if len(rows) else named.index[:6]  # a competition may have none
draw_grid(views(images, rows, project.competition.root), [images["identity"][row] for row in rows])

# %% [markdown]
# ## Class sizes
#
# A long tail is the rule in this field. It is why a classifier alone is not enough, and why scores are read by the
# number of images that the gallery has of an individual.

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
# A fold's queries stand against the labelled images of the other folds. `unseen`: their identity has no image there,
# so that the unknown label is the right answer. The folds should look alike, and they do as far as whole photographs
# can be dealt.

# %%
fold_table(folds, unknown)

# %% [markdown]
# ## The same photograph twice
#
# A copy of a query in its gallery gives the answer away, so that copies share a fold. Under each picture: its label,
# and the fold that it is in (test images have none).

# %%
copies = images[images.groupby("group")["image"].transform("size") > 1].sort_values("group")
print(f"{len(copies):,} images in {copies['group'].nunique():,} groups")
fold_of = folds.set_index("image")["fold"]
shown = copies.index[:12]
labels = images["identity"].where(images["split"] == "train", "test")
titles = [f"{labels[row]}\nfold {fold_of.get(images['image'][row], '-')}" for row in shown]
draw_grid(views(images, shown, project.competition.root), titles, columns=4) if len(shown) else None

# %% [markdown]
# Next: [train one run](02_train_one.ipynb).
