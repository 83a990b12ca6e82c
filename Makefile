# Each target sets itself up: the virtual environment in .venv is made once, with this project in it. When what it needs
# changes it is installed on top, and what a user has added stays.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help quickstart test check docs docs-serve notebooks embedded benchmark clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

quickstart: $(READY) ## train GRPO on the embedded default: about a minute on two cores
	$(BIN)/python -m rlvr_pl fit --config configs/quickstart.yaml

test: $(READY) ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(READY) ## lint, format and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## build the site of docs/ into site/
	$(BIN)/mkdocs build --strict

docs-serve: $(READY) ## show the site on http://127.0.0.1:8000, and anew when a page changes
	$(BIN)/mkdocs serve --strict

notebooks: $(READY) ## execute the notebooks again and save them with their outputs
	$(BIN)/python -m tests.helpers.notebooks

embedded: $(READY) ## make the embedded model again: about 40 minutes on two cores
	$(BIN)/python -m rlvr_pl.embedded.pretrain

benchmark: $(READY) ## time the reward functions and the rollout engine: about 40 minutes on two cores
	$(BIN)/python benchmarks/rewards.py
	$(BIN)/python benchmarks/rollout.py

clean: ## remove the virtual environment and the caches
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis
