# Needs Python 3.11 or later and make. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCRIPTS := $(VENV)/.scripts
READY := $(VENV)/.ready

.PHONY: setup demo test coverage test-gpu test-vllm test-all lint bench bench-gpu clean

setup: $(READY)

# What the scripts need, the server's too: wheels alone. torch first, so that nothing that needs one asks for another build.
$(SCRIPTS): requirements.txt requirements/serve.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@echo "Installing into $(VENV): 3 GB with torch for a CPU, several more with CUDA's libraries; some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/serve.txt
	touch $(SCRIPTS)

# All that the tests run. webrtcvad, of a metric, has no wheels: a C compiler and Python's headers build it.
$(READY): $(SCRIPTS) $(addprefix requirements/,dev.txt eval.txt export.txt ray.txt)
	@echo "Installing what the tests need: 1.5 GB more."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/dev.txt
	touch $(READY)

demo: $(SCRIPTS)
	$(BIN)/python experiments/demo/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process for each core, and a thread for each process: more threads than cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal

# The same, and what share of llasa/ was run, by room.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal --cov --cov-report=
	$(BIN)/python tests/coverage_by_room.py

# Liger patches Llama for its whole process, so the tests that need a GPU have a process of their own.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# In the environment of requirements/vllm.txt, with pytest in it too.
test-vllm:
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/generation/test_engine_vllm.py tests/serving/test_scheduler_vllm.py

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n auto --dist worksteal

# The README's table and figures, measured anew on a CPU: some 20 minutes, with nothing else running.
bench: setup
	$(BIN)/python experiments/benchmarks/origin.py --output experiments/benchmarks/origin-cpu.json
	$(BIN)/python experiments/benchmarks/growth.py --output experiments/benchmarks/growth-cpu.json
	$(BIN)/python experiments/benchmarks/draw.py

# The same comparison on a GPU, then the parts of training for which time is left.
bench-gpu: setup
	$(BIN)/python experiments/benchmarks/origin.py --minutes 5 --output experiments/benchmarks/origin-gpu.json
	$(BIN)/python experiments/benchmarks/train_gpu.py --minutes 2 --output experiments/benchmarks/train-gpu.json

clean:
	rm -rf $(VENV) outputs/demo
