# whaleid: from a competition's CSVs to a scored submission. `make` alone prints this help.
# The targets call the `whaleid` command, which has more: `whaleid --help`.

COMPETITION ?= sample
RECIPE ?=
MINUTES ?=
WORK ?=
JOBS ?= 0
EXECUTOR ?= local
SET ?=
ARGS ?=
PYTHON ?= python3

VENV := .venv
WHALEID := $(VENV)/bin/python -m whaleid
TYPES := $(VENV)/bin/basedpyright --level error --pythonpath $(VENV)/bin/python
# Packages are installed uncompiled: a module is compiled when it is first imported, and that must be kept. Where it is
# not, every process compiles torch, timm and scikit-learn again: 27 seconds in the place of 9 before a run begins.
export PYTHONDONTWRITEBYTECODE :=
DATA = --competition "$(COMPETITION)"
PROJECT = $(DATA) $(if $(RECIPE),--recipe "$(RECIPE)") $(if $(MINUTES),--minutes $(MINUTES)) $(if $(WORK),--work "$(WORK)") $(foreach pair,$(SET),--set '$(pair)')
RUNS = $(PROJECT) --jobs $(JOBS) --executor $(EXECUTOR)
setting = $(shell sed -n 's/.*"$(1)" *: *"\([^"]*\)".*/\1/p' SETTINGS.json 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: ready help setup sample train features ensemble submission score leaderboard report kernel kernel-run submit \
        test lint ruff bench bench-peers trust docs clean

help:  ## this help
	@echo "usage: make TARGET [COMPETITION=sample|nyala|cattle|lion|humpback|path.yaml] [RECIPE=auto|sample|gold|path.yaml]"
	@echo "            [MINUTES=60] [WORK=folder] [JOBS=0] [EXECUTOR=local|ray|slurm] [SET=\"image.width=128 combine.stack=null\"] [ARGS=...] [PYTHON=python3]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16
	@echo
	@echo "start here: make leaderboard. Everything else: $(VENV)/bin/whaleid --help"

setup: $(VENV)/.ready  ## the environment in .venv (run again: nothing happens)

$(VENV)/.ready: requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "whaleid needs Python 3.11 or newer; found $$("$(PYTHON)" --version). Try: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing the packages of requirements.txt (about 3 minutes the first time)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-compile -r requirements.txt
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

sample: setup  ## the drawn sample of humpback flukes, in data/sample
	@$(WHALEID) data sample

# The data of other competitions is not drawn: `whaleid data download` gets it from Kaggle.
ready: $(if $(filter sample,$(COMPETITION)),sample,setup)

train: ready  ## train every experiment of the recipe on every fold
	@$(WHALEID) train $(RUNS) $(ARGS)

features: ready  ## embeddings of every image by every run
	@$(WHALEID) features $(RUNS) $(ARGS)

ensemble: ready  ## rank identities, combine the rankers, print the ladder
	@$(WHALEID) ensemble $(RUNS) $(ARGS)

submission: ready  ## write the submission CSV into submissions/
	@$(WHALEID) submission $(RUNS) $(ARGS)

score: ready  ## score the submission against the competition's solution, if it has one
	@$(WHALEID) score $(PROJECT) $(ARGS)

leaderboard: ready  ## every stage, from the CSVs to the scored submission
	@$(WHALEID) leaderboard $(RUNS) $(ARGS)

report: ready  ## a page with the recipe's results, in work/<competition>/report/
	@$(WHALEID) report $(PROJECT) $(ARGS)

kernel: ready  ## the recipe's Kaggle kernel and its data sets (ARGS="--owner your-kaggle-name")
	@$(WHALEID) kernel $(RUNS) $(ARGS)

kernel-run: ready  ## make that kernel, run it here as Kaggle would, and compare its submission
	@$(WHALEID) kernel $(RUNS)
	@$(WHALEID) kernel-run $(PROJECT) $(ARGS)

submit: ready  ## show what would be submitted to Kaggle; ARGS=--confirm submits it
	@$(WHALEID) kaggle submit $(PROJECT) $(ARGS)

# The types are checked beside the tests, and said after them; either one's failure is the target's.
# worksteal: neighbouring tests stay in one worker, which makes what they share once.
test: setup ruff  ## lint, types and tests
	@$(TYPES) >$(VENV)/types.log 2>&1 & types=$$!; \
	  OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto --dist worksteal $(ARGS); tests=$$?; \
	  wait $$types; types=$$?; cat $(VENV)/types.log; \
	  test $$tests -eq 0 || echo "the tests failed: see above (pytest ended with $$tests)" >&2; \
	  test $$types -eq 0 || echo "the types failed: see above (basedpyright ended with $$types)" >&2; \
	  test $$tests -eq 0 && test $$types -eq 0

lint: setup ruff  ## ruff and basedpyright
	@$(TYPES)

ruff: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

bench: sample  ## timings as ratios to a bare loop or call, into benchmarks/results/
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

bench-peers: setup  ## other libraries on equal cores and minutes, into docs/results.md (ARGS="--peer pml --minutes 5")
	@$(VENV)/bin/python benchmarks/peers.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

trust: setup  ## kill, starve, spoil and soak the pipeline, into docs/trust.md (ARGS="--only soak --runs 5")
	@$(VENV)/bin/python tests/trust/report.py $(ARGS)

docs: setup  ## the documentation as web pages, in site/
	@$(VENV)/bin/python -m whaleid.config.reference docs/configuration.md
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet $(ARGS)

# A folder outside of this one may hold other files: it is named, and left alone.
clean:  ## remove work/ and the sample (never weights/, submissions/ or your data)
	@for folder in "$(or $(call setting,WORK_DIR),work)" "$(or $(call setting,RAW_DATA_DIR),data)/sample"; do \
	  case "$$folder" in \
	    .|./*|..|../*|*/..|*/../*|/*|~*) echo "left alone, because it is not a folder in here: $$folder" ;; \
	    *) echo "rm -rf $$folder"; rm -rf "$$folder" ;; \
	  esac; \
	done
