# Everything a newcomer needs: `make demo` and `make test`. Both need only Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin
# Idle threads that sleep instead of spinning: on few cores they would take time from the others.
export OMP_WAIT_POLICY := PASSIVE
export TRANSFORMERS_VERBOSITY ?= error
export HF_HUB_OFFLINE ?= 1
# Two processes, each with a file of tests at a time; the tests are many and hardly use two threads.
TWICE := -n 2 --dist loadfile

.PHONY: demo app test test-oldest newest test-triton test-app test-lmms test-vllm lint train train-siglip study
.PHONY: gpu test-gpu bench bench-check performance figures wheel docs test-site audit sbom soak fuzz fuzz-guided mutants clean
demo: .venv/ready
	$(RUN)/gprune demo

# The web page, on the shipped model.
app: .venv/app/ready
	PYTHONPATH=.venv/app $(RUN)/gprune app

test: .venv/ready
	$(RUN)/python -m pytest $(TWICE)
	$(RUN)/python -m pytest tests/accelerator

# The web page in a real browser; Chromium comes from the system's packages.
test-app: .venv/app/ready
	PYTHONPATH=.venv/app $(RUN)/python -m pytest tests/app

# Beside the pinned rest, like the oldest transformers: Gradio wants older versions of two libraries.
.venv/app/ready: requirements-app.lock .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/app -r requirements-app.lock
	touch $@

# The oldest transformers we support, beside the pinned newest.
test-oldest: .venv/ready .venv/oldest/ready
	PYTHONPATH=.venv/oldest $(RUN)/python -m pytest $(TWICE) tests/hf

.venv/oldest/ready: .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/oldest transformers==5.19.0
	touch $@

# The newest transformers that the index serves, looked up on every run, with the newest of what it needs.
# Tested or not, the tests are its proof. A failure names the families and the tests that broke.
newest: .venv/ready
	rm -rf .venv/newest
	$(RUN)/pip install --quiet --disable-pip-version-check --no-cache-dir --target .venv/newest transformers
	PYTHONPATH=.venv/newest GPRUNE_UNTESTED_TRANSFORMERS=allow $(RUN)/python -m tests.newest $(TWICE) tests/hf

# The GPU's kernels: run by Triton's interpreter on the CPU, and compiled for GPUs.
test-triton: .venv/triton/ready
	PYTHONPATH=.venv/triton TRITON_INTERPRET=1 $(RUN)/python -m pytest tests/graph/kernels/test_kernels.py
	PYTHONPATH=.venv/triton TRITON_CACHE_DIR=.venv/triton/cache \
		$(RUN)/python -m pytest tests/graph/kernels/test_compiling.py

.venv/triton/ready: requirements-triton.lock .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/triton -r requirements-triton.lock
	touch $@

# lmms-eval's own command on the tiny VLM, in an environment of its own (2.6 GB).
test-lmms: .venv/lmms/ready
	PYTHONPATH=tests/evaluation/lmms/torchvision_cpu .venv/lmms/bin/python -m pytest tests/evaluation/lmms

.venv/lmms/ready: requirements.lock requirements-lmms.lock pyproject.toml
	$(PYTHON) -m venv .venv/lmms
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-lmms.lock
	.venv/lmms/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# vLLM pins its own transformers and more, so its tests have an environment of their own.
VLLM := .venv-vllm/bin
# First, so that neither of the two processes is left with them at the end.
LONGEST := --no-loadscope-reorder tests/serving/vllm/test_server.py \
	tests/serving/vllm/test_proof.py tests/serving/vllm/test_setups.py tests/serving/test_ray.py
test-vllm: .venv-vllm/ready
	PYTHONPATH=tests/serving/shim $(VLLM)/python -m pytest $(TWICE) $(LONGEST) tests/serving

.venv-vllm/ready: requirements-vllm.lock pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.lock
	$(VLLM)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The examples are checked too: they show whether type checkers see what gprune exports.
lint: .venv/ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy examples
	$(RUN)/lint-imports --no-logo

# Trains the tiny VLM from scratch (hours on a CPU; a killed run resumes) into runs/tiny.
train: .venv/ready
	$(RUN)/python -m gprune.training --out runs/tiny --seed 0

# The second shipped model: a tower without CLS under the first one's language model.
train-siglip: .venv/ready
	$(RUN)/python -m gprune.training --out runs/siglip --seed 1 --tower siglip \
		--language tinyvlm --patch-steps 3600 --answer-steps 1600 --answer-rate 5e-4

# Trains the other models of docs/models.md (other objectives and seeds) and measures methods on them: for
# each model half an hour of training and a quarter of an hour of measuring on two cores. Patch labels are
# the language model's own words, so it needs fewer steps to answer from them.
STUDY := captions-1 captions-2 captions-3 patches-2
STUDIED := average_pooling,cdpruner,d2pruner,dart,divprune,gprune,graph_cover,hiprune,holov,l2_norm,random
STUDIED := $(STUDIED),text_cover,todre,tome,uniform_grid,visionzip,vispruner,vlm_pruner,weighted_cover
STUDIED := $(STUDIED),weighted_gprune
study: .venv/ready
	for model in $(STUDY); do \
		case $$model in patches-*) answers=400;; *) answers=800;; esac; \
		$(RUN)/python -m gprune.training --out runs/$$model --objective $${model%-*} \
			--seed $${model#*-} --language tinyvlm --attention products \
			--patch-steps 2400 --answer-steps $$answers && \
		$(RUN)/python benchmarks/tiny_accuracy.py --checkpoint runs/$$model/checkpoint \
			--out benchmarks/results/models/$$model --work out/$$model \
			--keeps 0.5,0.36,0.25,0.1,0.05 --names $(STUDIED) || exit 1; \
	done
	$(RUN)/python benchmarks/models.py

# Timed as a user runs it: threads that sleep at once take milliseconds to wake up, which a selection of few
# milliseconds shows.
TIMED := env -u OMP_WAIT_POLICY
bench: .venv/ready
	$(TIMED) $(RUN)/python benchmarks/selection.py --out benchmarks/results/selection.json
	$(TIMED) $(RUN)/python benchmarks/long_video.py --out benchmarks/results/long_video.json
	$(TIMED) $(RUN)/python benchmarks/every_method.py --out benchmarks/results/every_method.json
	$(TIMED) $(RUN)/python benchmarks/prefill.py --out benchmarks/results/prefill.json
	$(RUN)/python benchmarks/tiny_accuracy.py
	$(RUN)/python benchmarks/leaderboard.py

# Measures some of it anew and compares ratios with the committed ones.
bench-check: .venv/ready
	$(TIMED) $(RUN)/python benchmarks/check.py

# Selection, kernels and prefill on a CUDA GPU beside the CPU; DEVICE=cpu tries the tests without one.
test-gpu: .venv/ready
	$(RUN)/python -m pytest tests/gpu

# On a machine with a CUDA GPU, whose torch brings Triton: what only it can show, and its numbers.
gpu: test-gpu
	$(RUN)/python benchmarks/selection.py --device cuda --kernels \
		--out benchmarks/results/gpu/selection.json
	$(RUN)/python benchmarks/long_video.py --device cuda \
		--out benchmarks/results/gpu/long_video.json
	$(RUN)/python benchmarks/prefill.py --out benchmarks/results/gpu/prefill.json
	$(RUN)/python benchmarks/performance.py

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

# Builds the wheel and tries it in a new environment, away from the repository.
wheel: .venv/ready
	rm -rf dist
	$(RUN)/python -m build --no-isolation
	.ci/check_wheel dist/gprune-*.whl

# Builds the documentation in site/; it needs none of the library's dependencies.
docs: .venv/docs/ready
	.venv/docs/bin/python docs/generate.py out/site
	rm -rf site
	.venv/docs/bin/zensical build --strict --config-file out/site/mkdocs.yml
	mv out/site/site site
	.venv/docs/bin/python docs/check.py site

# The built site in Chromium, at 1400 and 390 pixels.
test-site: docs .venv/app/ready
	PYTHONPATH=.venv/app $(RUN)/python -m pytest tests/docs/test_look.py

.venv/docs/ready: requirements-docs.lock
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	touch $@

# Known vulnerabilities of everything that is pinned; asks a public database.
audit: .venv/audit/ready
	for lock in requirements*.lock; do \
		.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r $$lock || exit 1; \
	done

# What the pinned environment is made of, for a release.
sbom: .venv/audit/ready
	mkdir -p dist
	.venv/audit/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-file dist/gprune.cdx.json

.venv/audit/ready: requirements-audit.lock
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check -r requirements-audit.lock
	touch $@

# Half an hour of mixed work in one process: memory has to stay flat and answers the same.
soak: .venv/ready
	$(RUN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30)

# 100,000 cases on the selection core and 10,000 on the edges, where files and options come in.
fuzz: .venv/ready
	$(RUN)/python -m tests.fuzz --core 100000 --edges 10000

# One edge with coverage as its guide: make fuzz-guided TARGET=images RUNS=100000
fuzz-guided: .venv/fuzz/ready
	PYTHONPATH=.venv/fuzz $(RUN)/python -m tests.fuzz.guided $(or $(TARGET),jsonl) \
		-runs=$(or $(RUNS),10000)

.venv/fuzz/ready: requirements-fuzz.lock .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/fuzz -r requirements-fuzz.lock
	touch $@

# Do the tests notice a changed operator? Hours for all; one module: make mutants ONLY='gprune.budget*'
mutants: .venv/mutants/ready
	PYTHONPATH=.venv/mutants $(RUN)/python -m mutmut run $(if $(ONLY),'$(ONLY)')
	PYTHONPATH=.venv/mutants $(RUN)/python -m mutmut results

.venv/mutants/ready: requirements-mutants.lock .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/mutants -r requirements-mutants.lock
	touch $@

clean:
	rm -rf .venv .venv-vllm out dist site mutants
