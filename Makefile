# Needs Python 3.11 or later and make. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-gpu test-all lint clean

setup: $(READY)

# Two steps on purpose: with torch there, nothing that needs a torch asks for another build of it.
$(READY): requirements.txt requirements/dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/dev.txt
	touch $(READY)

demo: setup
	$(BIN)/python experiments/demo/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu"

# Liger patches Llama for its whole process, so the tests that need a GPU have a process of their own.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

test-all: setup
	$(BIN)/python -m pytest -m "not gpu"

clean:
	rm -rf $(VENV) outputs/demo
