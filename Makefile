# The commands of this repository. Everything is installed below this folder (.venv*, .majors,
# examples/node/node_modules), but for Debian's packages, which `make test` and `make check` ask apt for where they are
# missing.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export FOLDER ?=
ARGS ?=
MAJORS ?= 14 15 16 17 18
# Tests start some hundred interpreters: each would compile all of it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-sql test-python test-pythons test-bench test-majors check bench bench-report chaos snapshot bootstrap node dev clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.demo ## Run the main job on an embedded PostgreSQL (FOLDER=/some/texts ARGS='--option')
	$(BIN)/pljobs demo $(if $(FOLDER),"$$FOLDER") $(ARGS)

test: .venv/.dev bootstrap node ## Run everything that a change must pass, installing what is missing
	$(BIN)/python tools/lanes.py --pairs 18 sql debian

test-sql: .venv/.dev bootstrap ## Run pgTAP, isolation specs and PL/pgSQL coverage on PostgreSQL 18 and 15 (ARGS=FILES)
	$(BIN)/python tools/run_tests.py $(ARGS)

test-python: .venv/.dev bootstrap node ## Run pytest on PostgreSQL 18 and on 15 (ARGS='-k something')
	$(BIN)/python tools/lanes.py 18 debian --args='$(ARGS)'

test-pythons: ## Run the driver's cancel tests on each newer Python that this machine has
	tools/newer_pythons

test-bench: .venv/.bench ## See that each benchmark still runs, and its tables and charts are made
	$(BIN)/python -m pytest -q -m bench tests_py/test_bench.py

test-majors: .venv/.dev bootstrap node ## Run all of it on PostgreSQL 14 to 18, three at once: some 20 minutes (MAJORS='14 17')
	$(BIN)/python tools/lanes.py --sql --args='$(ARGS)' $(MAJORS)

check: .venv/.dev .venv-pgspot/.done bootstrap ## Run ruff, mypy, plpgsql_check, pgspot, squawk; see that what is generated is current
	@failed=0; run() { echo "$$@"; "$$@" || failed=1; }; \
	run $(BIN)/ruff check --quiet .; \
	run $(BIN)/ruff format --check --quiet .; \
	run $(BIN)/mypy; \
	run $(BIN)/python tools/check_sql.py; \
	run $(BIN)/python tools/snapshot.py --check; \
	exit $$failed

snapshot: .venv/.dev bootstrap ## Write what is generated: sql/schema.sql, sql/manifest.sql
	$(BIN)/python tools/snapshot.py

bench: .venv/.dev .venv-bench/.done ## Measure beside a floor and other queues: a quarter of an hour (ARGS='drain latency', --long)
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-report: .venv/.bench ## Write the tables in benchmarks/README.md and docs/benchmarks/*.svg of what `make bench` measured
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/charts.py

chaos: .venv/.dev bootstrap ## Run the fault matrix, and look for lost or doubled jobs (ARGS='--rows W1,D --scale 0.1')
	$(if $(ARGS),,$(BIN)/python -m pytest -q -m chaos)
	PYTHONPATH=tests_py:tools $(BIN)/python -m chaos.run $(ARGS)

dev: .venv/.dev ## Make .venv with everything for working on pljobs

bootstrap:
	@tools/bootstrap

# Where it fails, the test that needs it does, and all others are run.
node:
	-@tools/bootstrap_node

clean: ## Remove what make made (not Debian's packages)
	rm -rf .venv .venv-* .majors examples/node/node_modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pljobs needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

# Stamps inside the environments that they speak of: without the one, the other is gone too.
.venv/.demo: pyproject.toml | .venv/bin/python
	$(PIP) install -e '.[cli,embedded,periodic]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(PIP) install -e '.[all,dev]'
	@touch $@ .venv/.demo

.venv/.bench: .venv/.dev
	$(PIP) install -e '.[all,dev,bench]'
	@touch $@

# What pljobs is measured beside: never a dependency of it.
.venv-bench/.done:
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install \
	    'procrastinate>=3,<4' 'pgqueuer>=1,<2' asyncpg 'psycopg[binary,pool]' uvloop
	@touch $@

# pgspot pins a pglast that nothing else here wants: an environment of its own.
.venv-pgspot/.done:
	$(PYTHON) -m venv .venv-pgspot
	.venv-pgspot/bin/python -m pip --disable-pip-version-check --quiet install 'pgspot==0.9.4'
	@touch $@
