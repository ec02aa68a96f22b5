# Needs Python 3.10 or newer and git, nothing else. The environment is made once, and again when what it depends on changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install train test check coverage clean

help:
	@echo "make train   train REINFORCE on CartPole-v1, evaluate it and say where the model is"
	@echo "make test    run the tests"
	@echo "make check   lint, format and type checks"
	@echo "make coverage   run the tests and report the coverage"
	@echo "make clean   remove the environment and what tools left behind"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# PyTorch first: asked for by its exact version, it is taken from wherever pip finds that very build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(INSTALLED)

train: $(INSTALLED)
	$(BIN)/python examples/cartpole.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
