# `make run` trains the small model that ships; `make test` runs the checks. Both set themselves up first.

PYTHON ?= python3
VENV ?= .venv
# Where PyTorch's CPU builds come from. Only used without an NVIDIA GPU.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BUILD := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
INDEX := $(if $(filter cpu,$(BUILD)),--extra-index-url $(TORCH_INDEX) --retries 0)
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check $(if $(filter cpu,$(BUILD)),--no-deps)
READY := $(VENV)/.ready-$(BUILD)
# Tests at once: a process takes some 5 GB, and what it tests a core or two. They would share a GPU's memory.
JOBS ?= $(if $(filter gpu,$(BUILD)),1,2)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
NAME ?= vimpo-$(shell date +%Y%m%d-%H%M%S)

export OMP_NUM_THREADS ?= 1

.PHONY: run docs package test test-slow study setup lint unit audit clean help

help:
	@echo "make run     train the small model that ships with VIMPO, sampling with vLLM (a few minutes)"
	@echo "make study   a short form of docs/studies/noise.md: three algorithms, with and without noise (three minutes)"
	@echo "make test    formatting, types and the tests, but for the slowest"
	@echo "make test-slow   the slowest tests: whole runs, pairs of ranks (several minutes)"
	@echo "make docs        the documentation's site, in site/; a broken link is an error"
	@echo "make package     source archive and wheel, in dist/"
	@echo "make audit       known vulnerabilities of the locked requirements (asks the network)"
	@echo "make setup   the virtual environment in $(VENV) (both do it when needed)"

setup: $(READY)

$(READY): requirements/$(BUILD).txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlkit needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "== set-up ($(BUILD) build) in $(VENV): some 4 GB, about two minutes"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "   torch"
	@$(PIP) $(INDEX) "$$(grep '^torch==' requirements/$(BUILD).txt)"
	@echo "   the other locked requirements"
	@$(PIP) -r requirements/$(BUILD).txt
	@echo "   rlkit itself"
	@$(BIN)/pip uninstall -qq -y rlkit 2>/dev/null  # the name it had before: with both, plugins are registered twice
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "== set-up done: $(BIN)/rlkit --help"

run: setup
	@echo "== rlkit run --algo vimpo: a small model learns two-digit addition"
	@$(BIN)/rlkit run --algo vimpo -s sampler=vllm --name $(NAME) $(ARGS)
	@echo "== next: $(BIN)/rlkit sample runs/$(NAME) \"47+85=\"; other algorithms: $(BIN)/rlkit run --algo grpo"

STUDY ?= study

study: setup
	@echo "== rlkit sweep noise, in short: 2 seeds, 40 steps, 2 learning rates, one kind of noise"
	@if [ -e runs/$(STUDY)/sweep.yaml ]; then $(BIN)/rlkit sweep --resume runs/$(STUDY) --jobs 2; else \
		$(BIN)/rlkit sweep noise --seeds 0-1 --noise none,group_flip:0.25 --tune lr=2e-4,4e-4 --tune-seeds 100 \
		-s steps=40 --jobs 2 --name $(STUDY) $(ARGS); fi

test: setup lint unit
	@echo "== all checks passed; what rlkit promises is in tests/promises"

lint: setup
	@echo "== ruff, mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

unit: setup
	@echo "== tests (real DeepSpeed, real vLLM; fifteen minutes on two cores)"
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	@echo "== the slowest tests"
	@$(PYTEST) -m slow $(ARGS)

docs: setup
	@echo "== the documentation's site"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/docs.txt
	@PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "== to read it: $(BIN)/python -m http.server -d site"

package: setup
	@echo "== source archive and wheel"
	@$(BIN)/python tools/package.py dist | tail -2

# In an environment of its own: the locked ones stay what they are.
AUDIT := build/audit/bin

audit:
	@test -x $(AUDIT)/pip-audit || { $(PYTHON) -m venv build/audit && $(AUDIT)/pip install -qq pip-audit; }
	@for each in requirements/*.txt; do echo "== $$each"; $(AUDIT)/pip-audit --disable-pip --no-deps -r $$each || exit 1; done

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
