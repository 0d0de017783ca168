# whaleid: from a competition's CSVs to a scored submission. `make` alone prints this help.
# Every stage is a command of its own; a stage whose inputs have not changed is skipped.

COMPETITION ?= sample
RECIPE ?= $(if $(filter sample,$(COMPETITION)),sample,cpu)
WORK ?=
JOBS ?= 0
PYTHON ?= python3
SET ?=
QUICK ?=
CONFIRM ?=
OWNER ?=
RUN_ARGS ?=
FROM ?= predictions
ARGS ?=

# Folders are named in SETTINGS.json alone; WORK= goes before it.
setting = $(shell sed -n 's/.*"$(1)" *: *"\([^"]*\)".*/\1/p' SETTINGS.json 2>/dev/null)
IN_WORK = $(if $(WORK),--work "$(WORK)")

VENV := .venv
WHALEID := $(VENV)/bin/python -m whaleid
OPTIONS = --competition "$(COMPETITION)" --recipe "$(RECIPE)" $(IN_WORK) $(foreach pair,$(SET),--set '$(pair)')
CONFIRMED = $(if $(filter 1,$(CONFIRM)),--confirm)

.DEFAULT_GOAL := help
.PHONY: help setup weights sample data check folds pretrain train features ensemble ablation submission score leaderboard \
        report plan doctor kernel kernel-run kernel-push kernel-status kernel-output submit scores notebooks test lint \
        bench bench-metric archive rebuild clean

help:  ## this help
	@echo "usage: make TARGET [COMPETITION=sample|nyala|humpback|happywhale|path.yaml] [RECIPE=sample|cpu|gold|path.yaml]"
	@echo "            [WORK=folder] [JOBS=0] [PYTHON=python3] [SET=\"image.width=128 train.epochs=20\"] [CONFIRM=1] [ARGS=...]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16
	@echo
	@echo "start here: make leaderboard"

setup: $(VENV)/.ready  ## the environment in .venv (idempotent)

$(VENV)/.ready: requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "whaleid needs Python 3.11 or newer; found $$("$(PYTHON)" --version). Try: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing the packages of requirements.txt (about 3 minutes the first time)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

weights: setup  ## pretrained EfficientNet-Lite weights into weights/ (WEIGHTS_DIR of SETTINGS.json)
	@$(WHALEID) weights

# Another competition's data is its owner's: only the embedded sample is made on demand.
sample: setup  ## the embedded sample: drawn humpback flukes, in data/sample
	@$(WHALEID) sample

ifeq ($(COMPETITION),sample)
DATA := sample
else
DATA := setup
endif

data: $(DATA)  ## the images table: sizes, hashes, duplicates (of a Kaggle competition: downloaded first)
	@$(if $(filter sample,$(COMPETITION)),,$(WHALEID) fetch --competition "$(COMPETITION)")
	@$(WHALEID) data build --competition "$(COMPETITION)" $(IN_WORK) $(ARGS)

check: $(DATA)  ## report on the data: missing, unreadable, duplicate, contradictory rows
	@$(WHALEID) data check --competition "$(COMPETITION)"

folds: $(DATA)  ## the fold of every labelled image
	@$(WHALEID) folds $(OPTIONS) $(ARGS)

pretrain: $(DATA)  ## train the backbone of a recipe with `pretrain` without labels, into weights/
	@$(WHALEID) pretrain $(OPTIONS) $(ARGS)

train: $(DATA)  ## train every experiment of the recipe on every fold
	@$(WHALEID) train $(OPTIONS) --jobs $(JOBS) $(ARGS)

features: $(DATA)  ## embed every image with every run
	@$(WHALEID) features $(OPTIONS) --jobs $(JOBS) $(ARGS)

ensemble: $(DATA)  ## rank identities, combine the sources, print the ladder
	@$(WHALEID) ensemble $(OPTIONS) --jobs $(JOBS) $(ARGS)

ablation: $(DATA)  ## the recipe with each part off in turn, from saved features: what every part is worth
	@$(WHALEID) ablation $(OPTIONS) --jobs $(JOBS) $(ARGS)

submission: $(DATA)  ## write the submission CSV into submissions/
	@$(WHALEID) submission write $(OPTIONS) --jobs $(JOBS) $(ARGS)

score: $(DATA)  ## score the submission against the competition's solution, where it has one
	@$(WHALEID) score $(OPTIONS) $(ARGS)

leaderboard: $(DATA)  ## everything, from the CSVs to the scored submission
	@$(WHALEID) leaderboard $(OPTIONS) --jobs $(JOBS) $(ARGS)

report: $(DATA)  ## pages and pictures of the recipe's results, in work/<competition>/report/
	@$(WHALEID) report $(OPTIONS) $(ARGS)

kernel: $(DATA)  ## the recipe's Kaggle kernel and its data sets, in work/<competition>/kernel/<recipe>/ (OWNER=you)
	@$(WHALEID) kernel $(OPTIONS) --jobs $(JOBS) $(if $(OWNER),--owner "$(OWNER)") $(ARGS)

kernel-run: kernel  ## run that kernel here as Kaggle would, offline, and compare its submission
	@$(WHALEID) kernel-run $(OPTIONS) $(RUN_ARGS)

archive: $(DATA)  ## what the submission can be built from again, with checksums: one file under the work folder
	@$(WHALEID) archive $(OPTIONS) $(ARGS)

rebuild: $(DATA)  ## the submission again, FROM=predictions, weights or train, compared with the archive's
	@$(WHALEID) rebuild $(OPTIONS) --jobs $(JOBS) --from "$(FROM)" $(ARGS)

plan: setup  ## what the recipe would train: jobs, sizes, estimated hours
	@$(WHALEID) plan $(OPTIONS) $(ARGS)

doctor: setup  ## what is here of what the recipe needs: packages, GPU, disk, memory, data, Kaggle
	@$(WHALEID) doctor $(OPTIONS) $(ARGS)

# What publishes shows what it would do; CONFIRM=1 does it.
kernel-push: setup  ## the kernel's data sets and the kernel to Kaggle (CONFIRM=1 to do it)
	@$(WHALEID) kernel-push $(OPTIONS) $(CONFIRMED) $(ARGS)

kernel-status: setup  ## how far the kernel is at Kaggle
	@$(WHALEID) kernel-status $(OPTIONS) $(ARGS)

kernel-output: setup  ## what the kernel left at Kaggle, its submission.csv checked
	@$(WHALEID) kernel-output $(OPTIONS) $(ARGS)

submit: $(DATA)  ## the recipe's latest submission to Kaggle, its score into the log (CONFIRM=1 to do it)
	@$(WHALEID) submit $(OPTIONS) $(CONFIRMED) $(ARGS)

scores: setup  ## leaderboard scores into submissions/log.csv, and a picture of them against the out-of-fold scores
	@$(WHALEID) scores $(OPTIONS) $(ARGS)

notebooks: $(DATA)  ## the notebooks' .ipynb from their texts, and executed copies in work/<competition>/notebooks/
	@COMPETITION="$(COMPETITION)" RECIPE="$(RECIPE)" WORK="$(WORK)" SET='$(SET)' $(VENV)/bin/python notebooks/make.py --run $(ARGS)

test: setup  ## lint, types and tests
	@$(MAKE) --no-print-directory lint
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto $(ARGS)

lint: setup  ## ruff and basedpyright
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/basedpyright --level error --pythonpath $(VENV)/bin/python

bench: setup  ## timings as ratios to a bare loop or call, into benchmarks/results/
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

bench-metric: sample  ## heads compared on identities never seen: Recall@k, MAP@R, NMI (QUICK=1: 10 minutes)
	@$(VENV)/bin/python benchmarks/metric_learning.py $(if $(filter-out 0,$(QUICK)),--quick) --jobs $(JOBS) $(if $(WORK),--work "$(WORK)/bench-metric") $(ARGS)

# A folder outside of this one may hold more than ours: that is named, and left to its owner.
clean:  ## remove work/ and the sample (never weights/, submissions/ or your data)
	@for folder in "$(or $(call setting,WORK_DIR),work)" "$(or $(call setting,RAW_DATA_DIR),data)/sample"; do \
	  case "$$folder" in \
	    .|./*|..|../*|*/..|*/../*|/*|~*) echo "left alone, for it is not a folder in here: $$folder" ;; \
	    *) echo "rm -rf $$folder"; rm -rf "$$folder" ;; \
	  esac; \
	done
