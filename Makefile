# `make demo` and `make test` need a Python >= 3.11 and nothing else: each target makes the environment that it uses.
# PYTHON=/path/to/python chooses the interpreter of an environment that is made anew.

PYTHON ?= $(shell .ci/find-python 3.11)
EXTRAS := .[experiments,vlm,test]
RUN    := .venv/bin/python

DEMO_FLAGS   ?=
# Each of two processes takes half of the tests in their order, so that those of a file share what they compile.
PYTEST_FLAGS ?= -n 2 --dist worksteal
DIR          ?= tests/golden
BENCH        ?= ops

# What other versions of jax and flax must pass: every op, layer and family of models, dumps of each, loading, training and
# writing. VERSION_TESTS="tests ssmjax" is all of the default tests.
VERSION_TESTS ?= $(addprefix tests/,ops/test_registry.py layers/test_registry.py models/test_registry.py parity \
                   checkpoints/test_hub.py checkpoints/test_hf.py training/test_fit.py training/test_trainable.py \
                   test_generation.py vlmjax/test_create.py vlmjax/checkpoints vlmjax/test_training.py)

# The interpreter as the user named it, else what `.ci/find-python $(1)` finds.
choose_python = $(if $(filter file,$(origin PYTHON)),$(shell .ci/find-python $(1)),$(PYTHON))

.PHONY: help demo test test-slow test-gpu test-tpu-compile test-parity parity-torch test-reliability test-notebooks test-colab-pins \
        test-newest lint format wheel-test docs bench clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 20

# What a newcomer runs -------------------------------------------------------------------------------------------------

demo: .venv/.ready  ## train vim_nano on 1,797 embedded handwritten digits: no download, minutes on two cores
	@$(RUN) -m experiments.vim_cifar --data digits --out-dir runs/demo $(DEMO_FLAGS)

test: .venv/.ready  ## the default tests
	@$(RUN) -m pytest $(PYTEST_FLAGS)

# More tests -----------------------------------------------------------------------------------------------------------

test-slow: .venv/.ready  ## the longer tests, and the examples of the layers
	@$(RUN) -m pytest $(PYTEST_FLAGS) -m slow

parity-torch: .venv/.ready  ## compare with fresh models of transformers; needs the extra [parity]
	@$(RUN) -m pytest -q tests/torch -m torch

test-parity: .venv/.ready  ## compare with reference dumps: make test-parity DIR=folder
	@$(RUN) -m tests.parity $(DIR)

test-reliability: .venv/.ready  ## kill -9, corrupted files, determinism
	@$(RUN) -m pytest -m reliability

test-gpu: .venv/.ready  ## the kernels on this machine's GPU against float64; recorded in benchmarks/results
	@$(RUN) -m tests.gpu

test-tpu-compile: .venv/.ready  ## compile every op and three training steps for TPUs that are not here, with their memory
	@.ci/make-venv .venv $(RUN) "jax[tpu]"
	@$(RUN) -m benchmarks.ahead tpu

test-notebooks: .venv/.ready  ## execute the notebooks in smoke form
	@$(RUN) -m pytest -m notebook

test-colab-pins: .venv-colab/.ready  ## VERSION_TESTS and the demo on a stock Colab's jax and flax, Python 3.13 where found
	@.venv-colab/bin/python -m pytest $(PYTEST_FLAGS) $(VERSION_TESTS)
	@.venv-colab/bin/python -m experiments.vim_cifar --data digits --out-dir runs/demo $(DEMO_FLAGS)

test-newest:  ## VERSION_TESTS and the demo on the newest jax and flax (Python >= 3.12), upgraded on every call
	@.ci/make-venv .venv-newest "$(call choose_python,3.12)" --upgrade -e "$(EXTRAS)"
	@.venv-newest/bin/python -m pytest $(PYTEST_FLAGS) $(VERSION_TESTS)
	@.venv-newest/bin/python -m experiments.vim_cifar --data digits --out-dir runs/demo $(DEMO_FLAGS)

# For developers -------------------------------------------------------------------------------------------------------

lint: .venv/.ready-dev  ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: .venv/.ready-dev  ## let ruff rewrite the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel-test: .venv/.ready-dev  ## build the wheel, install it alone in a fresh environment, use it from another folder
	@.ci/wheel-test $(RUN)

docs: .venv/.ready-docs  ## build the documentation into docs/_build/html, notebooks in smoke form
	@$(RUN) -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: .venv/.ready  ## time the ops (BENCH=ops) on this machine: see benchmarks/README.md
	@$(RUN) -m benchmarks.$(BENCH)

clean:  ## remove what is built and cached; environments and runs stay
	rm -rf build dist docs/_build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find ssmjax vlmjax experiments tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments: a stamp file makes a second call quick -----------------------------------------------------------------

.venv/.ready: pyproject.toml .ci/make-venv
	@.ci/make-venv .venv "$(PYTHON)" -e "$(EXTRAS)"
	@touch $@

.venv/.ready-dev: .venv/.ready
	@.ci/make-venv .venv $(RUN) -e ".[dev]"
	@touch $@

.venv/.ready-docs: .venv/.ready
	@.ci/make-venv .venv $(RUN) -e ".[docs]"
	@touch $@

.venv-colab/.ready: pyproject.toml .ci/make-venv
	@.ci/make-venv .venv-colab "$(call choose_python,3.11 3.13)" -e "$(EXTRAS)" jax==0.7.2 jaxlib==0.7.2 flax==0.11.2
	@touch $@
