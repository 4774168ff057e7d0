# Everything from a bare checkout: each target builds .venv first, once.
#   make ablation   the digits degradation study and its report (FLAGS=... changes the study)
#   make test       the tests (TESTS=... selects some; the long ones, marked slow: make test-slow)
#   make check      ruff and the type checker
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY := runs/degradation_digits
FLAGS :=
TESTS :=

.PHONY: ablation test test-slow check venv clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else "PYTHON=$(PYTHON) is Python %d.%d; allowed are 3.11 to 3.14, as in: make PYTHON=python3.11 $(MAKECMDGOALS)" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -r requirements.txt
	@touch $@

ablation: venv
	$(BIN)/python -m experiments.sweep --config=configs/degradation_digits.py --workdir=$(STUDY) $(FLAGS)
	$(BIN)/python -m experiments.compare $(STUDY) --out=$(STUDY)/report

test: venv
	$(BIN)/python -m pytest -n 2 -m "not slow" $(TESTS)

# SkyPilot pins other versions, so that its parser has an environment of its own.
.venv-skypilot/.installed: tests/requirements-skypilot.txt
	test -x .venv-skypilot/bin/python || $(PYTHON) -m venv .venv-skypilot
	.venv-skypilot/bin/python -m pip install --disable-pip-version-check --quiet --no-compile -r $<
	@touch $@

# TFDS with TensorFlow, to compare experiments.prepare with.
.venv-tensorflow/.installed: tests/requirements-tensorflow.txt
	test -x .venv-tensorflow/bin/python || $(PYTHON) -m venv .venv-tensorflow
	.venv-tensorflow/bin/python -m pip install --disable-pip-version-check --quiet --no-compile -r $<
	@touch $@

# PyTorch, torchvision, onnxruntime and two trained networks, which are compared with ours.
.venv-torch/.installed: tests/requirements-torch.txt
	test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --disable-pip-version-check --quiet --no-compile \
		--no-deps -r $<
	@touch $@

# The compiler for TPUs, in the version of jax[tpu]. It is not in .venv, where JAX would look for a
# TPU in every program.
.libtpu/.installed: requirements.txt | venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps \
		--target .libtpu "$$($(BIN)/python -c 'import importlib.metadata as m; print(next( \
		r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
	@touch $@

test-slow: venv .venv-skypilot/.installed .venv-tensorflow/.installed .venv-torch/.installed \
		.libtpu/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "slow and not compiler"  # many of them wait
	PYTHONPATH=.libtpu $(BIN)/python -m pytest -n 2 -m compiler

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-newer .venv-skypilot .venv-tensorflow .venv-torch .libtpu runs
