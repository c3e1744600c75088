# Everything a newcomer needs: `make demo` and `make test`. Both need only Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin
# Idle threads that sleep instead of spinning: on few cores they would take time from the others.
export OMP_WAIT_POLICY := PASSIVE
export TRANSFORMERS_VERBOSITY ?= error
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-oldest test-lmms lint train bench bench-check performance figures clean
demo: .venv/ready
	$(RUN)/gprune demo

test: .venv/ready
	$(RUN)/python -m pytest

# The oldest transformers we support, beside the pinned newest.
test-oldest: .venv/ready .venv/oldest/ready
	PYTHONPATH=.venv/oldest $(RUN)/python -m pytest tests/hf

.venv/oldest/ready: .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/oldest transformers==5.19.0
	touch $@

# lmms-eval's own command on the tiny VLM, in an environment of its own (2.6 GB).
test-lmms: .venv/lmms/ready
	PYTHONPATH=tests/lmms/torchvision_cpu .venv/lmms/bin/python -m pytest tests/lmms

.venv/lmms/ready: requirements.lock requirements-lmms.lock pyproject.toml
	$(PYTHON) -m venv .venv/lmms
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-lmms.lock
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lint: .venv/ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

# Trains the tiny VLM from scratch (hours on a CPU; a killed run resumes) into runs/tiny.
train: .venv/ready
	$(RUN)/python -m gprune.tinyvlm.train --out runs/tiny --seed 0

bench: .venv/ready
	$(RUN)/python benchmarks/selection.py --out benchmarks/results/selection.json
	$(RUN)/python benchmarks/long_video.py --out benchmarks/results/long_video.json
	$(RUN)/python benchmarks/prefill.py --out benchmarks/results/prefill.json
	$(RUN)/python benchmarks/tiny_accuracy.py
	$(RUN)/python benchmarks/leaderboard.py

# Measures some of it anew and compares ratios with the committed ones.
bench-check: .venv/ready
	$(RUN)/python benchmarks/check.py

# Writes docs/performance.md from the committed results.
performance: .venv/ready
	$(RUN)/python benchmarks/performance.py

figures: .venv/ready
	$(RUN)/python benchmarks/figures.py

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gprune needs Python >= 3.11; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv out dist
