# Needs Python 3.10 or newer and git, nothing else. The environment is made once, and again when what it depends on changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install train test test-fast check coverage docs linkcheck clean

help:
	@echo "make train   train REINFORCE on CartPole-v1, evaluate it and say where the model is"
	@echo "make test    run the tests"
	@echo "make test-fast   run the tests of the core, without processes, commands and the laboratory"
	@echo "make check   lint, format, type and spelling checks"
	@echo "make coverage   run the tests and report the coverage"
	@echo "make docs    build the site in docs/_build/html; make docs DOCS_STEPS=256 with short trainings"
	@echo "make linkcheck   ask every link of the site to other sites, and list the answers"
	@echo "make clean   remove the environment and what tools left behind"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# PyTorch first: asked for by its exact version, it is taken from wherever pip finds that very build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Sphinx 9 needs Python 3.11
$(INSTALLED)-docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

install: $(INSTALLED)

train: $(INSTALLED)
	$(BIN)/python examples/cartpole.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not (processes or commands or laboratory or documents)"

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# Pages are made again, but notebooks are executed only if they changed
docs: $(INSTALLED)-docs
	DOCS_STEPS=$(DOCS_STEPS) $(BIN)/python -m sphinx --fresh-env --write-all --fail-on-warning --keep-going docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

linkcheck: $(INSTALLED)-docs
	DOCS_STEPS=256 $(BIN)/python -m sphinx --builder linkcheck docs docs/_build/linkcheck

clean:
	rm -rf docs/_build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
