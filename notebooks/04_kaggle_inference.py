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
# # 4. The kernel for Kaggle
#
# This notebook makes the inference kernel (`make kernel`) and runs it here as Kaggle would (`make kernel-run`):
# without a network, without this repository, with read-only inputs. Nothing is uploaded.
#
# Missing runs of the recipe are trained first. Wheels of packages that Kaggle's image lacks are downloaded once, into
# `work/kaggle-wheels/`.

# %%
import json
import os

import pandas as pd

from whaleid.evaluation.topk import read_guesses
from whaleid.kaggle.kernel.bundle import KernelOptions, make_bundle
from whaleid.kaggle.kernel.local_run import RunOptions, compare_submissions, run_bundle, submission_of
from whaleid.notebooks import notebook_project
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import latest_submission
from whaleid.pipeline.workspace import read_images
from whaleid.report.grid import draw_grid
from whaleid.report.thumbnails import thumbnails
from whaleid.utils.manifest import read_manifest

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## The local submission
#
# The kernel must reproduce it.

# %%
run(project, "submission")
figures, local = require_figures(project), latest_submission(project)
final = figures["ladder"]["rungs"][-1]
print(f"{local}: MAP@{final['k']} out of fold {final['map']:.5f} [{final['low']:.5f}, {final['high']:.5f}]")

# %% [markdown]
# ## The bundle
#
# A short kernel and three data sets that it reads: the code of whaleid; wheels; and the assets (weights, features of
# the labelled images, tables). Only the test images are embedded on Kaggle. Each data set lists its files and their
# checksums in `MANIFEST.json`.
#
# The owner is a placeholder until you run `whaleid kernel --owner <you>`.

# %%
bundle = make_bundle(project, KernelOptions(), project.workspace.root.parent / "kaggle-wheels")
manifests = {role: read_manifest(bundle.folder / "datasets" / role) for role in bundle.sizes}
files = {role: len(manifest.files) for role, manifest in manifests.items()}
pd.DataFrame({"files": files, "MB": {role: manifest.size / 1e6 for role, manifest in manifests.items()}}).round(2)

# %% [markdown]
# The kernel's metadata: no internet, its data sets, whether it uses a GPU.

# %%
print((bundle.folder / "kernel" / "kernel-metadata.json").read_text())

# %% [markdown]
# ## Running it as Kaggle would
#
# The kernel checks its inputs, installs the wheels, embeds the test images run by run, and combines the rankings with
# the same stages as the local submission. If time runs short, it first leaves out test-time augmentation, then the
# weakest sources.

# %%
place = project.workspace.root / "kernel-run" / "notebook"
kernel = run_bundle(bundle.folder, project.competition, place, RunOptions())
print(f"{kernel.seconds:.0f} s; {kernel.isolation}")

# %%
print(compare_submissions(local, submission_of(kernel)).line())
notes = json.loads((kernel.working / "kernel.json").read_text())
pd.Series({name: value for name, value in notes.items() if not isinstance(value, dict)}).to_frame("kernel.json")

# %% [markdown]
# A few test images with their first two guesses.

# %%
images = read_images(project.workspace)
guesses = read_guesses(submission_of(kernel))
row_of = dict(zip(images["image"], images.index, strict=True))
shown = list(zip(guesses.images, guesses.as_lists(), strict=True))[:6]
titles = ["\n".join([f"1. {row[0]}", *(f"2. {label}" for label in row[1:2])]) for _, row in shown]
draw_grid(thumbnails(images, [row_of[image] for image, _ in shown], project.competition.root), titles)

# %% [markdown]
# ## To Kaggle itself
#
# | command | what it does |
# |---|---|
# | `whaleid doctor -c <competition>` | shows what is missing: credentials, accepted rules, space |
# | `whaleid kernel --owner <you>` | makes this bundle under your name |
# | `whaleid kaggle push` | shows what would be published; `--confirm` publishes it |
# | `whaleid kaggle status`, `whaleid kaggle output` | the kernel's state, and its `submission.csv`, checked |
# | `whaleid kaggle submit --confirm`, `whaleid kaggle scores` | submits, and reads the leaderboard score into the log |
