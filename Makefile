# make demo   environment, build, install, then train and look at an iP-VAE on natural images
# make test   the same environment with the development tools; lint, types and tests
# make sweep  random calls of every public function, twenty times as many as in make test
# make bench-quick   time the kernels against plain PyTorch: under two minutes
# make bench         the same cases through pytest-benchmark, with torch.compile and JAX; CASES=infer for others
# make aot           every Triton kernel in every configuration for three GPU architectures: the table in bench/results
# make triton-interpreter   the tests of every op with Triton's interpreter, all but the laws of its draws, which equal those of
#                           the other backends: a quarter of an hour
# make triton-matrix   the table of aot with every version of Triton since 3.3: hours
# make clean  remove what the above made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc ipvae_kernels python bench -type f \
             \( -name '*.py' -o -name '*.pyi' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \))

CASES ?= quick

.PHONY: demo test sweep lint bench bench-quick aot triton-matrix triton-interpreter clean

demo: $(VENV)/.installed
	$(BIN)/ipvae demo --out demo

test: lint
	$(BIN)/pytest

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

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "Building and installing (the first time downloads PyTorch, which takes a few minutes)"
	$(PIP) '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	@echo "Building and installing, with the development tools (the first time takes minutes)"
	$(PIP) '.[train,dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.bench: $(BIN)/python $(SOURCES)
	$(PIP) '.[train,bench]'
	@touch $(VENV)/.installed $@

triton-matrix: $(VENV)/.dev
	$(BIN)/python bench/triton_matrix.py --all --out bench/results/triton_versions.md

triton-interpreter: $(VENV)/.dev
	TRITON_INTERPRET=1 $(BIN)/pytest -q -k triton --ignore tests/ipvae_kernels/poisson/test_poisson_laws.py tests/ipvae_kernels

aot: $(VENV)/.dev
	$(BIN)/python bench/triton_aot.py --all --out bench/results/triton_aot.md

clean:
	rm -rf $(VENV) build demo .mypy_cache .ruff_cache .pytest_cache *.egg-info
