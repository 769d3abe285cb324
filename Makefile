# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the others.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
WEIGHTS ?= weights/miniature
LOCK = constraints/$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
export ORT_DISABLE_TELEMETRY := 1
PIP = $(BIN)/python -m pip install --disable-pip-version-check --constraint $(LOCK)
PYTEST ?= $(BIN)/python -m pytest

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.build $(WEIGHTS)/profile.json ## three people in two scenes each on the embedded server; writes out/demo_sheet.png
	$(BIN)/python -m build_tools demo --weights $(WEIGHTS)

test: check weights/miniature/profile.json ## checks and tests, under 15 minutes on 2 cores
	$(PYTEST) -m "not long and not gpu" --numprocesses 2 --dist loadscope tests/unit tests/client
	$(PYTEST) -m "not long and not gpu" tests/server

test-long: check weights/miniature/profile.json ## the long forms too
	$(PYTEST) -m "not gpu" --numprocesses 2 --dist loadscope tests/unit tests/client
	$(PYTEST) -m "not gpu" tests/server

# With PYTEST="python -m pytest" nothing is installed: torch, diffusers and transformers suffice.
test-gpu: export PYTHONPATH := src:client:.:$(PYTHONPATH)
test-gpu: $(if $(filter $(VENV)/bin/python,$(PYTEST)),$(VENV)/.dev) ## what needs a GPU
	$(PYTEST) -m gpu tests/gpu

check: $(VENV)/.dev ## formatting, lint, types, layering, contract; seconds
	$(BIN)/ruff format --quiet --check .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy src/instantid client/instantid_client
	$(PYTEST) tests/unit/test_layering.py tests/unit/test_contract.py

serve: $(VENV)/.build $(WEIGHTS)/profile.json ## keep the embedded server running and print a call
	$(BIN)/python -m build_tools serve --weights $(WEIGHTS)

loadtest: $(VENV)/.dev ## a minute of load on the server of `make serve`, with a report: make loadtest ARGS="noisy_neighbour"
	$(BIN)/python -m loadtest run $(ARGS)

bench: $(VENV)/.dev $(WEIGHTS)/profile.json ## side-by-side measurements: face analysis against insightface, scheduling on the server
	$(BIN)/python bench/face_analysis.py
	$(BIN)/python bench/scheduling.py --weights $(WEIGHTS)

lock: $(VENV)/.dev ## resolve the pins in constraints/ anew
	for v in 3.11 3.12; do echo "Resolving the newest packages for Python $$v"; \
		$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --all-extras --no-emit-package instantid-client \
		--python-version $$v --python-platform x86_64-manylinux_2_35 --no-header --no-annotate \
		--output-file constraints/$$v.txt; done

clean: ## remove what was built; weights and the environment stay
	rm -rf build dist out run *.egg-info src/*.egg-info client/build client/*.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or 3.12 on PATH (or PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || build_tools/system_packages.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build: $(VENV)/bin/python pyproject.toml client/pyproject.toml $(wildcard constraints/*.txt)
	@build_tools/system_packages.sh $(BIN)/python
	@echo "Installing what serving needs: about 100 packages, minutes; 5 GB on disk with PyTorch's CUDA libraries."
	$(PIP) --editable ./client --editable '.[build]'
	@touch $@

# insightface is installed without its dependencies: it asks for the OpenCV that needs a screen, beside ours.
$(VENV)/.dev: $(VENV)/.build
	@echo "Installing what tests and measurements need: about 50 packages more, a minute or two."
	$(PIP) --editable ./client --editable '.[dev]'
	$(PIP) --no-deps insightface==2.1
	@build_tools/promtool.sh $(BIN)
	@touch $@

weights/miniature/profile.json: $(VENV)/.build $(wildcard miniature/*.py miniature/data/* build_tools/*.py) \
		$(wildcard build_tools/face_graph/*.py build_tools/published/folder.py)
	$(BIN)/python -m build_tools weights miniature --output weights/miniature

%/profile.json:
	@echo "no weights in $(WEIGHTS): python -m build_tools weights --help"; exit 1

.PHONY: help demo test test-long test-gpu check serve loadtest bench lock clean
