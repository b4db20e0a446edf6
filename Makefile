# make demo   environment, build, install; then train and look at an iP-VAE on natural images
# make test   the same environment with the development tools; lint, types and tests
# make sweep  random calls of every public function, twenty times as many as in make test
# make bench-quick   time the kernels against plain PyTorch: under two minutes
# make bench         the same cases through pytest-benchmark, with torch.compile and JAX; CASES=infer for others
# make aot           every Triton kernel in every configuration for three GPU architectures: the table in bench/results
# make triton-interpreter   the tests of every op with Triton's interpreter, all but the laws of its draws, which equal those of
#                           the other backends: a quarter of an hour
# make triton-matrix   the table of aot with every version of Triton since 3.3: hours
# make wheels        wheels of the Pythons at hand and the sdist, in dist/; each is tested in an environment of its own
# make test-matrix   the core tests with the oldest and the newest torch, Pythons and dependencies: gigabytes, tens of minutes
# make test-sae    the tests that need SAELens, in an environment of their own, .venv-sae: gigabytes, five minutes
# make scale       wide dictionaries, long sequences, single frames on this machine, beside the bounds: two minutes
# make endurance   10^6 steps of a stream with spikes on disk: memory, a kill at a random step, the same files: a quarter of an hour
# make docs        the site, with its tutorials and figures, in docs/_build/html; a warning is an error: three minutes
# make docs-links  every link of the site, also those that lead elsewhere
# make clean  remove what the above made
#
# Settings, as in `make demo CUDA=OFF`:
#   CUDA=OFF       build for the CPU alone where there is an nvcc; ON insists on it. The default uses nvcc where it is found
#   CUDAARCHS=90   the GPU architectures to compile for, as CMake writes them; about a minute each on two cores
#   PYTHONS=3.11   of `make wheels` and `make test-matrix`: only these ("3.10 3.13"), not all at hand
#   JOBS=4         processes of `make test`; 2 by default
#   PYTHON, VENV   the interpreter to build with, and the folder of the environment (.venv)

PYTHON ?= python3
VENV ?= .venv
CUDA ?= AUTO
CASES ?= quick
JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
export CMAKE_ARGS += -DIPVAE_CUDA=$(CUDA)
# What the environment is built from. The packages are installed in place, so a change of Python code needs no build.
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
# pip says little by default and everything with -v: of that, what is compiled and downloaded is shown, the rest lies in
# $(VENV)/install.log, whose end is shown where something fails.
PROGRESS := { grep --line-buffered -E '^ *(\[[0-9]+/[0-9]+\] Building|-- ipvae_kernels:|Downloading [^ ]*\.whl )' || true; }

SHELL := bash
.SHELLFLAGS := -e -o pipefail -c
.PHONY: demo test test-sae sweep scale endurance lint bench bench-quick aot triton-matrix triton-interpreter wheels test-matrix docs docs-links clean

demo: $(VENV)/.installed
	$(BIN)/ipvae demo --out demo

# A test that hangs fails with the stacks of its threads, and the others go on.
test: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal --timeout 900 --timeout-method thread

sweep: $(VENV)/.dev
	$(BIN)/pytest tests/test_sweep.py --calls 2000

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench-quick: $(VENV)/.installed
	$(BIN)/ipvae bench --suite quick

bench: $(VENV)/.bench
	$(BIN)/pytest --pyargs ipvae_bench.test_bench --benchmark-only --benchmark-group-by=param:case -k "$(CASES)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# install EXTRAS: the packages in place, with extras; a module of another Python version stays where it is.
define install
	@echo "Building and installing (the first time downloads PyTorch, which takes a few minutes)"
	@$(PIP) -v -e '.[$(1)]' 2>&1 | tee $(VENV)/install.log | $(PROGRESS) || { tail -n 60 $(VENV)/install.log; exit 1; }
endef

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(call install,train)
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(call install,train$(comma)dev)
	@touch $(VENV)/.installed $@

$(VENV)/.docs: $(BIN)/python $(SOURCES)
	$(call install,train$(comma)docs)
	@touch $(VENV)/.installed $@

$(VENV)/.bench: $(BIN)/python $(SOURCES)
	$(call install,train$(comma)bench)
	@touch $(VENV)/.installed $@

comma := ,

triton-matrix: $(VENV)/.dev
	$(BIN)/python tools/triton_matrix.py --all --out bench/results/triton_versions.md

triton-interpreter: $(VENV)/.dev
	TRITON_INTERPRET=1 $(BIN)/pytest -q -k triton --ignore tests/ipvae_kernels/poisson/test_poisson_laws.py tests/ipvae_kernels

aot: $(VENV)/.dev
	$(BIN)/python tools/triton_aot.py --all --out bench/results/triton_aot.md

wheels: $(BIN)/python
	$(BIN)/python tools/environments.py wheels $(addprefix --python ,$(PYTHONS))

test-matrix: $(BIN)/python
	$(BIN)/python tools/environments.py matrix $(addprefix --python ,$(PYTHONS))

# SAELens does not import beside the torchaudio that NeuroBench brings.
test-sae:
	$(PYTHON) -m venv $(VENV)-sae
	$(VENV)-sae/bin/python -m pip install -q --disable-pip-version-check --constraint constraints.txt '.[train,sae]' pytest
	$(VENV)-sae/bin/pytest -q tests/ipvae/test_sae.py tests/ipvae/test_reproduce.py -k "wide or activations or sae"

scale: $(VENV)/.dev
	$(BIN)/python tools/scale.py --out scale

endurance: $(VENV)/.dev
	$(BIN)/python tools/endurance.py

# Nitpicky, and a warning is an error. The source folder is the repository's root, the configuration lies in docs.
# One thread: the models are small, and two wait for each other where other processes want the cores.
SPHINX := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -c docs -d docs/_build/doctrees -n -W --keep-going -q

docs: $(VENV)/.docs
	$(SPHINX) -b html . docs/_build/html
	$(BIN)/python tools/site_links.py docs/_build/html

docs-links: $(VENV)/.docs
	$(SPHINX) -b linkcheck . docs/_build/links

clean:
	rm -rf $(VENV) $(VENV)-sae build dist demo docs/_build docs/_generated .mypy_cache .ruff_cache .pytest_cache *.egg-info ipvae_kernels/_C.*.so
