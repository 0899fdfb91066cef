PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
MANAGE := $(PY) manage.py
PIP_COMPILE := $(PY) -m piptools compile --quiet --strip-extras --no-header \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

FAULTS := $(sort $(wildcard tests/faults/test_fault_*.py)) tests/faults/test_crash_points.py

.DEFAULT_GOAL := help
.PHONY: help setup demo run test faults machine check bench lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment; the others do it when needed

demo: $(READY) ## make five images through the API, verify them, stop
	@$(MANAGE) demo

run: $(READY) ## run everything in the foreground until Ctrl-C
	@$(MANAGE) run

test: $(READY) ## run the whole test suite
	@$(PY) -m pytest -n 2 --dist loadgroup

faults: $(READY) ## inject every fault into real processes, print what was lost
	@PICTURE_FAULTS=full $(PY) -m pytest -p no:randomly $(FAULTS)
	@PICTURE_FAULTS=full $(PY) -m pytest tests/faults/test_soak.py

machine: $(READY) ## run the state machine and the races at length, half an hour
	@PICTURE_FAULTS=full $(PY) -m pytest -n 2 tests/faults/test_state_machine.py tests/faults/test_races.py

check: $(READY) ## format, lint, types, imports, migrations, API schema
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@$(MANAGE) makemigrations --check --dry-run
	@$(MANAGE) spectacular --api-version v1 --validate --fail-on-warn --file /dev/null

bench: $(READY) ## run the benchmarks
	@$(PY) -m benchmarks

lock: $(READY) ## pin the dependencies of pyproject.toml anew
	@$(PIP_COMPILE) --upgrade --output-file requirements.txt pyproject.toml
	@$(PIP_COMPILE) --upgrade --extra dev --constraint requirements.txt \
		--output-file requirements-dev.txt pyproject.toml

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"picture: Python 3.11 or newer is needed, this is %d.%d (set PYTHON)" % sys.version_info[:2])'
	@echo "installing the requirements into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
