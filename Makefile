# Two commands are enough: `make repro` (corpus to score table) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The stages' `python` is the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install repro test check lock-check report profile docs format clean-runs

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv and install requirements.lock

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"error: Python {v.major}.{v.minor} is too old; set PYTHON to 3.11 or newer, e.g. make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $(STAMP)

repro: $(STAMP) ## run the whole pipeline (dvc repro) and print its table
	dvc repro
	@python -m stages.report
	@python -m stages.summary

test: $(STAMP) ## run the test suite, a process a core
	OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile

check: $(STAMP) ## lint, format and type check
	ruff check .
	ruff format --check .
	mypy

lock-check: $(STAMP) ## does dvc.lock match code, params and data?
	python -m stages.lock_check

report: $(STAMP) ## write reports/index.html, one page of the last run
	@python -m stages.report

profile: $(STAMP) ## write a profile into params.yaml: make profile NAME=neobert-250m
	@test -n "$(NAME)" || { echo "error: say which: make profile NAME=neobert-250m; there are: $$(ls profiles | sed 's/.yaml//' | tr '\n' ' ')"; exit 1; }
	python -m neobert.config.profile $(NAME)

docs: $(STAMP) ## rewrite docs/configuration.md from the dataclasses
	python -m neobert.config.document docs/configuration.md

format: $(STAMP) ## format and fix what ruff can
	ruff check --fix .
	ruff format .

clean-runs: ## delete the scratch of finished and interrupted trainings
	rm -rf runs
