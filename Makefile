# `make demo` and `make test` set everything up by themselves, once, in .venv; see README.md.
PYTHON ?= python3
export DNGE_DATA ?= $(abspath ../shared/data)
export HF_HUB_OFFLINE = 1
# Where other jobs share the cores, threads that spin at a barrier cost minutes; sleeping ones cost nothing.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest
# A process for each core, eight at most, as each holds torch and its models; `make test WORKERS=0` runs all in one.
WORKERS ?= logical
ON_ALL_CORES := -n $(WORKERS) --maxprocesses 8 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: demo test test-slow test-gpu test-oldest lint types docs check scatter
.DEFAULT_GOAL := demo

demo: $(READY)  ## compress the example model, offline, and compare it before and after
	$(BIN)/python examples/demo.py

test: $(READY)  ## the tests that take minutes at most
	$(BIN)/python -m pytest $(ON_ALL_CORES)

test-slow: $(READY)  ## the slow ones as well; those for an accelerator stay out
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m "not gpu"

test-gpu: $(READY)  ## those for an accelerator, the slow ones as well, in one process; each says what it misses
	$(BIN)/python -m pytest -m gpu

test-oldest: $(OLDEST)/.ready  ## the tests with the oldest versions that pyproject.toml allows; they may warn
	$(OLDEST)/bin/python -m pytest $(ON_ALL_CORES) -o filterwarnings=default

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## the site in out/site, offline; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir out/site

check: lint types docs test

scatter: $(READY)  ## build torch-scatter against the installed torch, and compare its pooling with torch's own
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation torch-scatter
	$(BIN)/python -c "import torch_scatter"
	$(BIN)/python -m pytest tests/test_encoder.py -k scatter

# torch comes first and alone, so that nothing else decides its version. The stamp is written last: an installation
# that was interrupted starts over.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev,docs]'
	touch $(READY)

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install -c constraints-oldest.txt torch==2.13.0
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install -c constraints-oldest.txt -e '.[dev]'
	touch $@

