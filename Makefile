# Ember's commands. They need git, make and Python 3.11 or later; pip brings the rest into .venv, at the first command
# and again whenever pyproject.toml or constraints.txt has changed. GNU make 3.81 (macOS) is enough.
#
# Another Python:         make test PYTHON=python3.13
# torch for Linux from PyPI brings gigabytes of CUDA libraries. For its CPU build, tell pip where that is:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
CASES  ?= tests/golden/data

BIN    := .venv/bin
STAMP  := .venv/.installed
PEERS  := .venv/.peers
SUITE  := .venv/.arrayapi
EXTRAS := train,dna,torch,mlx,dev
ifeq ($(shell uname -sm),Darwin x86_64)
EXTRAS := train,dna,dev# neither torch nor mlx is built for Intel Macs: NumPy alone
endif

.PHONY: help demo test test-slow bench golden array-api docs dist clean

help:
	@echo "make demo              train a small HyenaDNA on a bacterial chromosome, sample from it, compare the engines"
	@echo "make test              the tests; needs nothing but pip"
	@echo "make test-slow         tests that take long or need more than pip brings: nvcc (Debian: nvidia-cuda-toolkit)"
	@echo "make bench             side by side with the engines' own code and other projects (installs them); writes benchmarks/results/"
	@echo "make golden CASES=DIR  every reference case below DIR, on every engine (default: $(CASES))"
	@echo "make array-api ARRAY_API_TESTS=DIR  the array API standard's suite on every engine; DIR: a checkout of data-apis/array-api-tests"
	@echo "make docs              a page a layer, docs/layers/, and what runs where, docs/support.md"
	@echo "make dist              wheel and sdist, in dist/"
	@echo "make clean             removes what was built; .venv and runs/ stay"

demo: $(STAMP)
	$(BIN)/ember train examples/dna_hyena.toml --out runs/demo --overwrite
	$(BIN)/ember generate runs/demo --length 200
	$(BIN)/ember parity runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(PEERS)
	$(BIN)/python -m benchmarks

golden: $(STAMP)
	$(BIN)/python -m tests.golden "$(CASES)"

array-api: $(SUITE)
	@test -n "$(ARRAY_API_TESTS)" || { echo "ember: say where the suite is: git clone --recurse-submodules" \
		"https://github.com/data-apis/array-api-tests, then make array-api ARRAY_API_TESTS=<its folder>"; exit 1; }
	$(BIN)/python -m tests.array_api "$(ARRAY_API_TESTS)"

docs: $(STAMP)
	$(BIN)/python docs/make_layers.py
	$(BIN)/python docs/make_support.py

# The wheel is built from the sdist, so that the sdist is known to be whole.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist .pytest_cache .hypothesis selftest.json
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "ember: found no '$(PYTHON)'; install Python 3.11 or later, or name one: make PYTHON=python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ember: expected Python 3.11 or later, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1);" \
		"name another: make PYTHON=python3.13"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "ember: installing ember-ml[$(EXTRAS)] with pip into .venv (the first time takes minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]" || { \
		echo "ember: the installation failed; see pip's message above. To start afresh: rm -rf .venv"; exit 1; }
	@touch $@

$(SUITE): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS),arrayapi]" || { \
		echo "ember: the installation of what the array API's suite needs failed; see pip's message above"; exit 1; }
	@touch $@

$(PEERS): $(STAMP)
	@echo "ember: installing what benchmarks compare with into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS),peers]" || { \
		echo "ember: the installation of the peers failed; see pip's message above"; exit 1; }
	@touch $@
