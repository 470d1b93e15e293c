# Every target first sets up what it needs, in .venv; a second call finds that done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run as two processes of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
EVAL = OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 -m ddit eval $(ARGS)
NOT_BENCHED := autoregressive compare_geneval geneval_rules joint_training learning_curve long_text long_text_arms \
	on_device optimizers reading_error real_size scaling training
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo eval test test-all lint format types docs bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/page.stamp ## install ddit with its page and server into .venv

demo: $(VENV)/run.stamp ## generate six images, caption them, ask about them: demo/index.html
	@$(BIN)/python tools/demo_page.py demo

eval: $(VENV)/run.stamp ## the shipped model's headline table, by two processes (ten minutes): runs/eval
	@$(EVAL) --out runs/eval/test
	@$(EVAL) --out runs/eval/heldout --split heldout --num-prompts 46 --num-scenes 150

test: $(VENV)/dev.stamp ## install the development tools too, and run the quick tests; ARGS are pytest's
	$(PYTEST) $(ARGS)

test-all: $(VENV)/dev.stamp ## the slow tests too, each within 20 minutes
	$(PYTEST) -m "not gpu" --timeout 1200 $(ARGS)

lint: $(VENV)/dev.stamp ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/dev.stamp ## write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev.stamp $(VENV)/docs.stamp ## pyright
	$(BIN)/pyright

docs: $(VENV)/docs.stamp ## the documentation site, with its notebooks executed: site/index.html
	@NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build -q && echo "site/: python -m http.server -d site"

bench: $(VENV)/dev.stamp ## the scripts in benchmarks/ (many minutes), but those that take arguments or hours
	@for name in $(filter-out $(NOT_BENCHED),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
		$(BIN)/python -m benchmarks.$$name || exit 1; done

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ddit needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV) (minutes the first time: PyTorch is large)" >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/page.stamp: $(VENV)/run.stamp
	@echo "Installing the page and the server" >&2
	@$(PIP_INSTALL) -e '.[page]'
	@touch $@
	@echo "Ready: $(BIN)/ddit --help (or '. $(BIN)/activate', then ddit --help)" >&2

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Installing the development tools" >&2
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	@echo "Installing the tools of the documentation" >&2
	@$(PIP_INSTALL) -e '.[docs,plot]'
	@touch $@
