# `make demo` runs the main job, `make test` passes the tests; both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check torture bench docs oracle gpu team-up team-down team-test clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed            ## train a small model and SAEs, index five datasets, compare them
	$(BIN)/scopebase demo

# One process more than there are cores: many tests wait for servers and processes of their own.
TESTERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
test: .venv/installed            ## the whole suite, on all cores
	$(BIN)/pytest -n $(TESTERS) --dist worksteal

check: .venv/installed           ## format, lint, types, import contracts, docs, then the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.documents --check
	$(MAKE) test

SEED ?= 1
torture: .venv/installed         ## 200 faults, 500 readers, fuzzers and long state machines, from SEED (see docs/reliability.md)
	$(BIN)/python -m tests.torture --seed $(SEED) --all

docs: .venv/installed            ## write the generated references anew
	$(BIN)/python -m tests.documents

bench: .venv/installed           ## measure; results go to bench-results/ (see docs/benchmarks.md)
	$(BIN)/python -m tests.speed

oracle: .venv/installed          ## compare the numerics with SAELens
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,oracle]'
	$(BIN)/pytest tests/indexer/test_against_sae_lens.py

gpu: .venv/installed             ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

team-up: .venv/installed         ## what docker-compose.yml runs, without Docker: PostgreSQL, an object store, API and worker; Ctrl-C ends it
	$(BIN)/python -m tests.team up

team-down:                       ## end the one that runs
	$(BIN)/python -m tests.team down

team-test: .venv/installed       ## start one, ask of it what the embedded deployment does, and end it
	$(BIN)/python -m tests.team check

clean:
	rm -rf .venv scopebase-demo bench-results
