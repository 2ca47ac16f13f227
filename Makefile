# `make up` and `make test` do all of their own set-up; only Python >= 3.11, make and a C library are needed.
.DEFAULT_GOAL := help
.PHONY: help setup up run test coverage chaos pooled mutants bench bench-growth figures check format story-check clean

PYTHON ?= python3
TARGETS ?= fireside,naive
WORKLOADS ?= A,B,C
REPEAT ?= 3
UV_VERSION := 0.13.8
# Most tests wait for processes of their own, so two processors have work for three test processes;
# each of these has its own servers, so there are never more than eight.
TEST_PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 7 ? n + 1 : 8)))
BIN := .venv/bin

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# uv lives in an environment of its own, so that it never changes the project's.
.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit("Fireside needs Python >= 3.11, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.ready: .uv/bin/uv pyproject.toml uv.lock
	.uv/bin/uv sync --frozen --all-extras --quiet --python $(PYTHON)
	@touch $@

setup: .venv/.ready  ## install everything into .venv from the lock file

up: .venv/.ready  ## run everything on this machine (PORT=8000) until Ctrl-C
	@exec $(BIN)/python -m deploy.local

# The servers of `make up` are found by the file that it keeps while it runs.
run: .venv/.ready  ## a command beside make up: CMD="api.keys create ada"
	$(if $(CMD),,@echo 'fireside: say which command: make run CMD="api.keys list"' >&2; exit 2)
	@home="$${FIRESIDE_HOME:-.fireside}"; \
		test -r "$$home/env" || { echo "fireside: nothing runs on $$home: make up starts it" >&2; exit 1; }; \
		set -a; . "$$home/env"; exec $(BIN)/python -m $(CMD)

# These start hundreds of processes, each of which would compile everything anew where Python is told
# (as in many images) to keep nothing that it compiled.
test coverage chaos pooled mutants: export PYTHONDONTWRITEBYTECODE :=

test: .venv/.ready  ## the whole test suite, on real embedded servers
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(ARGS)

coverage: .venv/.ready  ## lines and branches of agent_core that its own tests run (at least 95 %)
	$(BIN)/python -m pytest tests/agent_core --cov=agent_core --cov-branch --cov-fail-under=95 -q

# What `make chaos` without a SEED runs after its seeds: targets of this file.
HEAVY := pooled mutants

chaos: .venv/.ready  ## real processes under seeded faults (SEED=7 ACTIONS=240; without SEED: 20 of them, one behind a pooler, all mutants)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(ACTIONS),--actions $(ACTIONS)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(POOLER),--pooler)
	$(if $(SEED),,$(if $(HEAVY),@$(MAKE) --no-print-directory $(HEAVY)))

pooled: .venv/.ready  ## one seed with Postgres behind pgbouncer in transaction mode, if it is installed
	$(if $(shell PATH=$$PATH:/usr/sbin command -v pgbouncer),$(BIN)/python -m tests.chaos --seed 7 --pooler,\
		@echo "pgbouncer is not installed: no seed behind a pooler")

mutants: .venv/.ready  ## take each safeguard out of a copy; every test that watches it must fail
	$(BIN)/python -m tests.failpoints.mutants --all

# Other servers than ours and the textbook one need PEERS=DIR, the folder of their environments.
bench: .venv/.ready  ## our server beside others: TARGETS=fireside,naive WORKLOADS=A,B,C REPEAT=3 PEERS=DIR
	$(BIN)/python -m bench --targets $(TARGETS) --workloads $(WORKLOADS) --repeat $(REPEAT) \
		$(if $(PEERS),--peers $(PEERS)) --docs docs $(ARGS)

bench-growth: .venv/.ready  ## what a task costs on larger servers, and what many users need
	$(BIN)/python -m bench.growth --docs docs $(ARGS)
	$(BIN)/python -m bench.capacity --docs docs

figures: .venv/.ready  ## the figures of the documents on a quiet machine (50 minutes; PEERS=DIR 22 more; ARGS=--plan)
	@$(BIN)/python -m bench.figures --docs docs $(if $(PEERS),--peers $(PEERS)) $(ARGS)

check: .venv/.ready  ## format, lint, types and import rules
	.uv/bin/uv lock --check --quiet
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/.ready  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

story-check: .venv/.ready  ## check stories, FILES="stories/last-lamp ..." (all of stories/ by default)
	$(BIN)/python -m worker.ink $(or $(FILES),$(wildcard stories/*/) $(wildcard stories/*.ink)) $(ARGS)

clean:  ## remove the environment, not the data
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache
