# Two commands matter: `make demo` runs a real design campaign, `make test` runs the tests.
# PIP_ARGS is passed to pip, e.g. to choose a CPU or CUDA build of torch (see README.md).
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_BIN := .venv-bench/bin
BENCH_STAMP := .venv-bench/.installed
PIP_INSTALL := -m pip install --disable-pip-version-check
# Isolated builds take the pinned setuptools too.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := test
.PHONY: demo test validate bench lint wheel clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) $(PIP_ARGS) -e '.[dev]'
	@touch $@

$(BENCH_STAMP): pyproject.toml constraints.txt tests/benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(BENCH_BIN)/python $(PIP_INSTALL) $(PIP_ARGS) -e '.[test]' -r tests/benchmarks/requirements.txt
	$(BENCH_BIN)/python $(PIP_INSTALL) $(PIP_ARGS) --no-deps qpth==0.0.18  # works with numpy 2, which it says it does not
	@touch $@

demo: $(STAMP)
	$(BIN)/sciopt run examples/quickstart.yaml --out runs/quickstart

# One process per core, each on one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

validate: $(STAMP)
	$(BIN)/python -m tests.benchmarks.run --tier validate

bench: $(BENCH_STAMP)
	$(BENCH_BIN)/python -m tests.benchmarks.run --tier bench

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The installed copy of the wheel is imported outside the checkout, on top of the dependencies of .venv.
wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python $(PIP_INSTALL) --quiet --no-deps --target build/smoke dist/*.whl
	cd / && PYTHONPATH="$(CURDIR)/build/smoke" "$(CURDIR)/$(BIN)/python" -P "$(CURDIR)/tests/smoke_wheel.py"

clean:
	rm -rf .venv .venv-bench build dist *.egg-info
