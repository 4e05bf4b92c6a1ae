# A thin layer: a target is mostly one line of tools/bootstrap.py, which runs without make as well
# (Windows: `py tools\bootstrap.py lab`). Nothing here but that a folder name may contain a space.
#
#   make lab                    the course            make test       every check
#   make lab CPU=1              PyTorch's CPU build   PYTHON=python3.12 make lab   another Python
#   make help                   all targets

PYTHON ?= python3
CPU ?=
ARGS ?=
ONLY ?=
URL ?=
CLEAR ?=
UPGRADE ?=
ALL ?=
EXTRAS ?= course
FOLDER ?= class

SWITCHES := $(if $(CPU),--cpu)
# A Python that was asked for by name replaces a .venv of another one; the default keeps it.
ifneq ($(origin PYTHON),file)
SWITCHES += --this-python
endif

RUN = @command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	echo 'error: there is no "$(PYTHON)" on this machine. slam_edu needs Python 3.10 or newer:' \
	'on Debian and Ubuntu `sudo apt install python3 python3-venv`; or name yours,' \
	'as in `PYTHON=python3.12 make lab`.' >&2; exit 2; }; \
	"$(PYTHON)" tools/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help lab test setup lint notebooks site editions class wheel constraints address clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

lab: ## install what the lessons need and open JupyterLab on the first one
	$(RUN) lab $(SWITCHES) $(ARGS)

test: ## install what the tests need and run every check (ONLY=lint,unit for some)
	$(RUN) test $(SWITCHES) $(if $(ONLY),--only "$(ONLY)")

setup: ## install and stop there (EXTRAS=course,sd)
	$(RUN) setup $(SWITCHES) --extras "$(EXTRAS)"

lint: ## ruff over code and notebooks, spelling (ARGS=--fix)
	$(RUN) lint $(SWITCHES) $(ARGS)

notebooks: ## run the notebooks again, outputs written in place (ARGS=--check compares)
	$(RUN) notebooks $(SWITCHES) $(ARGS)

site: ## build the website into dist/site (ARGS=--linkcheck looks outside links up)
	$(RUN) site $(SWITCHES) $(ARGS)

editions: ## write the lessons for students and instructors (ARGS=--check compares)
	$(RUN) editions $(SWITCHES) $(ARGS)

class: ## set up a class for nbgrader (FOLDER=…, default class; ARGS=--lessons=01,02)
	$(RUN) class $(SWITCHES) "$(FOLDER)" $(ARGS)

wheel: ## build dist/slam_edu-….whl, for Colab
	$(RUN) wheel $(SWITCHES)

constraints: ## resolve pyproject.toml into constraints.txt (UPGRADE=1 for the newest)
	$(RUN) setup $(SWITCHES) --extras test
	.venv/bin/python -m pip install -q uv
	.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.10 \
		--no-python-downloads --all-extras --no-annotate $(if $(UPGRADE),--upgrade) \
		--custom-compile-command "make constraints (UPGRADE=1 takes the newest versions)" \
		-c constraints.in -o constraints.txt pyproject.toml

address: ## set the repository's public address everywhere (URL=https://… or CLEAR=1)
	"$(PYTHON)" -m tools.set_address $(if $(CLEAR),--clear,$(if $(URL),"$(URL)"))

clean: ## remove caches and dist/ (ALL=1: .venv too)
	rm -rf dist .pytest_cache .ruff_cache .hypothesis $(if $(ALL),.venv)
	find slam_edu slam_course studies tests tools notebooks -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
