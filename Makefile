# `make demo` and `make test`; `make docs` builds the site in docs/_build, `make tutorial` the tutorial's pictures.
# Each makes its own virtual environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
SITE := $(BIN)/sphinx-build -q -E -W --keep-going docs docs/_build

.PHONY: demo test docs tutorial install clean

demo: .venv/installed
	$(BIN)/undiffuse demo

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(SITE)
	$(BIN)/pytest -n 2 --dist loadfile --cov=undiffuse --cov-report=term:skip-covered

docs: .venv/installed-dev
	$(SITE)
	@echo docs/_build/index.html

tutorial: .venv/installed-dev
	$(BIN)/python docs/make_tutorial.py

install: .venv/installed

.venv/installed: pyproject.toml tools/environment.sh
	sh tools/environment.sh $(PYTHON) .
	touch $@

.venv/installed-dev: pyproject.toml tools/environment.sh
	sh tools/environment.sh $(PYTHON) ".[dev]"
	$(BIN)/pip install -q --no-deps torch-fidelity==0.4.0  # a reference for tests; what it depends on is not wanted
	touch $@

clean:
	rm -rf .venv docs/_build
