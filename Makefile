# Two commands: `make demo` and `make test`. Each makes its own virtual environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test install clean

demo: .venv/installed
	$(BIN)/undiffuse demo

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --cov=undiffuse --cov-report=term:skip-covered

install: .venv/installed

.venv/installed: pyproject.toml tools/environment.sh
	sh tools/environment.sh $(PYTHON) .
	touch $@

.venv/installed-dev: pyproject.toml tools/environment.sh
	sh tools/environment.sh $(PYTHON) ".[dev]"
	$(BIN)/pip install -q --no-deps torch-fidelity==0.4.0  # a reference for tests; what it depends on is not wanted
	touch $@

clean:
	rm -rf .venv
