# make demo: install into .venv and run the quickstart sweep.    make test: install and run the suite.
# make test-slow: the tests that the suite leaves out.    make check: linters and types.
# make science: the experiments of results/README.md into runs/, but for the benchmark; it goes on where it was stopped.
# make docs: the documentation, into build/docs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Bytecode is kept: without it each of the many processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-slow check science docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/ld3-dist sweep experiments/quickstart.yaml --output runs/quickstart

# Two processes with one thread each; tests that start Ray stay together (tests/conftest.py).
test: install
	OMP_NUM_THREADS=1 $(BIN)/slipcover --source ld3_dist --skip-covered \
	  -m pytest -n 2 --dist loadgroup --durations=15

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --durations=15

# Sweeps skip what their folder has, scripts what their tables have.
SWEEPS := radius radius_fashion radius_pairs theory_kl stress distances metrics flow_matching guidance

science: install
	@for name in $(SWEEPS); do \
	  $(BIN)/ld3-dist sweep experiments/$$name.yaml --output runs/$$name || exit; done
	OMP_NUM_THREADS=1 $(BIN)/python experiments/theory_kl.py runs/theory_kl
	OMP_NUM_THREADS=1 $(BIN)/python experiments/stress.py runs/stress
	OMP_NUM_THREADS=1 $(BIN)/python experiments/metrics.py runs/metrics
	OMP_NUM_THREADS=1 $(BIN)/python experiments/transfer.py runs/guidance
	OMP_NUM_THREADS=1 $(BIN)/python experiments/convergence_1d.py
	OMP_NUM_THREADS=1 $(BIN)/python experiments/consistency.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site is in build/docs; it works offline.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

clean:
	rm -rf .venv build dist *.egg-info runs
