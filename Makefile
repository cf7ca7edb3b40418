# make help lists what there is. Everything runs in .venv, which the targets make and fill themselves.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo-installed: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[digits]'
	touch $@

.venv/dev-installed: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/demo-installed

.venv/interop-installed: .venv/dev-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mkl]' 'torch==2.13.0' onnxscript skl2onnx
	touch $@

demo: .venv/demo-installed  ## install, train a CNN on real digits, save three formats, prove the ONNX file
	$(BIN)/gometal train --data digits --model cnn --out out/demo

install: .venv/dev-installed  ## install with everything for development

test: .venv/dev-installed  ## install and run all tests
	$(BIN)/python -m pytest --doctest-modules gometal_mlx
	$(BIN)/python -m pytest tests -m 'not interop'

test-interop: .venv/interop-installed  ## tests and examples judged by PyTorch and skl2onnx, and with MKL (installs them)
	$(BIN)/python -m pytest tests -m interop
	cd "$$(mktemp -d)" && "$(CURDIR)/$(BIN)/python" "$(CURDIR)/examples/interop/pytorch_round_trip.py"

test-lowest: .venv/dev-installed  ## all tests with the lowest versions that pyproject.toml allows (Python 3.11)
	$(PYTHON) -m venv --clear .venv-lowest
	$(BIN)/python tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest tests -m 'not interop'

test-gpu-paths: .venv/dev-installed  ## the tests again, with what a GPU would be given computed by the CPU
	PYTHONPATH=tests $(BIN)/python -m pytest -p as_on_a_gpu tests/layers tests/training tests/inference tests/checkpoints -m 'not interop'

lint: .venv/dev-installed  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/dev-installed  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: .venv/dev-installed  ## mypy --strict on the package
	$(BIN)/mypy

examples: .venv/dev-installed  ## run every example
	@set -e; for f in examples/*.py; do echo "== $$f"; (cd "$$(mktemp -d)" && "$(CURDIR)/$(BIN)/python" "$(CURDIR)/$$f"); done

notebooks: .venv/dev-installed  ## execute every notebook
	$(BIN)/jupyter-execute notebooks/*.ipynb

bench: .venv/dev-installed  ## measure; writes benchmarks/results.md
	$(BIN)/python benchmarks/run.py

check: lint type test examples notebooks  ## all of it

clean:  ## remove .venv, caches and outputs
	rm -rf .venv .venv-lowest out .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help demo install test test-interop lint format type examples notebooks bench check clean
