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
# What goes to Kaggle, and what happens there: the kernel's folder is made (`make kernel`) and executed here as Kaggle
# would (`make kernel-run`): its inputs read-only, without a network, without this checkout. Nothing is sent anywhere.
#
# What is missing of the recipe is trained first. Wheels of packages that Kaggle's image lacks are downloaded once, into
# `work/kaggle-wheels/`.

# %%
import json
import os

import pandas as pd

from whaleid.evaluation.submissions import read_guesses
from whaleid.kaggle.kernel.bundle import KernelOptions, make_bundle
from whaleid.kaggle.kernel.run import RunOptions, compare_submissions, run_bundle, submission_of
from whaleid.notebooks import notebook_project
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.stages import images_stage
from whaleid.pipeline.submission import submission_path, submission_stage
from whaleid.report.grid import draw_grid, views
from whaleid.utils.manifest import read_manifest

# %matplotlib inline

# %% tags=["parameters"]
project = notebook_project(os.environ, competition="sample", recipe=None, work=None)

# %% [markdown]
# ## The answer made at home
#
# The kernel is measured by it.

# %%
submission_stage(project, 1, [])
figures = read_figures(project)
home = submission_path(project, figures["key"])
final = figures["ladder"]["rungs"][-1]
print(f"{home}: MAP@{final['k']} out of fold {final['map']:.5f} [{final['low']:.5f}, {final['high']:.5f}]")

# %% [markdown]
# ## The bundle
#
# A thin kernel, and three data sets that it reads: the package's code; wheels; and the assets, which are the recipe's
# weights, the features of the labelled images, and the tables. Test images are embedded there, labelled ones are not
# embedded again. Every file is listed with its checksum in its data set's `MANIFEST.json`.
#
# The owner is a placeholder until `make kernel OWNER=<you>`.

# %%
bundle = make_bundle(project, KernelOptions(), project.workspace.root.parent / "kaggle-wheels")
manifests = {role: read_manifest(bundle.folder / "datasets" / role) for role in bundle.sizes}
files = {role: len(manifest.files) for role, manifest in manifests.items()}
pd.DataFrame({"files": files, "MB": {role: manifest.size / 1e6 for role, manifest in manifests.items()}}).round(2)

# %% [markdown]
# What Kaggle is told of it: no internet, which data sets, and whether it wants a GPU.

# %%
print((bundle.folder / "kernel" / "kernel-metadata.json").read_text())

# %% [markdown]
# ## Executed as Kaggle would
#
# The lines are the kernel's own. It checks what is mounted, installs the wheels, embeds the test images run by run with
# an eye on the clock (test-time views go first, then the weakest sources, rather than miss the limit), and combines by
# the very stages that made the answer at home.

# %%
run = run_bundle(bundle.folder, project.competition, project.workspace.root / "kernel-run" / "notebook", RunOptions())
print(f"{run.seconds:.0f} s; {run.words}")

# %%
print(compare_submissions(home, submission_of(run)).line())
notes = json.loads((run.working / "kernel.json").read_text())
pd.Series({name: value for name, value in notes.items() if not isinstance(value, dict)}).to_frame("kernel.json")

# %% [markdown]
# A few test images, and the first two labels of their rows.

# %%
images = images_stage(project)
guesses = read_guesses(submission_of(run))
row_of = dict(zip(images["image"], images.index, strict=True))
answered = list(zip(guesses.images, guesses.as_lists(), strict=True))[:6]
titles = ["\n".join([f"1. {row[0]}", *(f"2. {label}" for label in row[1:2])]) for _, row in answered]
draw_grid(views(images, [row_of[image] for image, _ in answered], project.competition.root), titles)

# %% [markdown]
# ## To Kaggle itself
#
# | command | what it does |
# |---|---|
# | `make doctor COMPETITION=...` | says what is missing: credentials, accepted rules, space |
# | `make kernel OWNER=<you>` | this bundle under your name |
# | `make kernel-push` | shows what would be published; `CONFIRM=1` publishes it, and waits for the data sets |
# | `make kernel-status`, `make kernel-output` | how far it is, and its `submission.csv`, checked |
# | `make submit`, `make scores` | the submission (`CONFIRM=1`), and its score on the leaderboard, into the log |
