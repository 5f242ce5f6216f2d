# Two commands on a fresh machine (Python 3.11 or newer, make, git): `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Reinstalled when pyproject.toml or constraints.txt changes.
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
SLOW_STAMP := $(VENV)/.installed-slow
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# guest.py awaits asyncio futures in finally blocks, where no Trio scope can shield; keepalive.py re-raises
# the cancelled request's error, and beside.py re-raises a thread's error in the Trio task.
ASYNC_EXCEPTIONS := llmux/server/guest.py:ASYNC102,ASYNC103 llmux/proxy/keepalive.py:ASYNC103
ASYNC_EXCEPTIONS += llmux/proxy/beside.py:ASYNC103,ASYNC104

# Tests start many llmux processes; without cached bytecode each would compile all of llmux.
unexport PYTHONDONTWRITEBYTECODE

LINTS := lint-format lint-ruff lint-async lint-shell lint-types lint-imports

.PHONY: help run test lint $(LINTS) unit compiled coverage test-slow test-real test-pythons
.PHONY: docs bench bench-quick soak format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: $(RUN_STAMP)  ## Serve llmux.yaml on port 3000, with two stand-in models
	@echo "== llmux: serving llmux.yaml (stop with Ctrl-C)"
	@exec $(BIN)/llmux -c llmux.yaml

test: $(TEST_STAMP)  ## Run format, lint, types, import rules and the fast tests, as CI does
	@$(MAKE) --no-print-directory --jobs=2 lint compiled
	@$(MAKE) --no-print-directory unit

# Compile the tests once, while the linters run, instead of in each test process.
compiled: $(TEST_STAMP)
	@$(BIN)/python -m pytest --collect-only -q > /dev/null || true

# .pre-commit-config.yaml calls the same targets.
lint: $(LINTS)  ## Check format, lint, types and import rules

lint-format: $(TEST_STAMP)
	@echo "== format"
	@$(BIN)/ruff format --check --quiet .

lint-ruff: $(TEST_STAMP)
	@echo "== lint"
	@$(BIN)/ruff check --quiet .

lint-async: $(TEST_STAMP)
	@echo "== async rules"
	@$(BIN)/flake8 --select=ASYNC1,ASYNC2 --extend-ignore=ASYNC109,ASYNC124,ASYNC127 \
		--per-file-ignores='$(ASYNC_EXCEPTIONS)' llmux

lint-shell: $(TEST_STAMP)
	@echo "== shell"
	@git ls-files -co --exclude-standard '*.sh' .ci/run | xargs $(BIN)/shellcheck

lint-types: $(TEST_STAMP)
	@echo "== types"
	@$(BIN)/mypy

lint-imports: $(TEST_STAMP)
	@echo "== import rules"
	@$(BIN)/lint-imports --no-cache > .venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

unit: $(TEST_STAMP)  ## Run the fast tests; they need only the loopback interface
	@echo "== tests"
	@$(BIN)/python -m pytest -n 4 --dist=worksteal -m "not slow and not real" $(ARGS)

coverage: $(TEST_STAMP)  ## Measure branch coverage of the fast tests; fails below the floor (twice as slow)
	@$(BIN)/coverage run -m pytest -q -m "not slow and not real" $(ARGS)
	@$(BIN)/coverage report --skip-covered --skip-empty

test-slow: $(SLOW_STAMP)  ## Run tests that take minutes, or need real clients or a browser
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-pythons: $(TEST_STAMP)  ## Run the fast tests under every CPython from 3.11 to 3.14 found here
	@tests/pythons.sh $(ARGS)

test-real: $(TEST_STAMP)  ## Test with real model servers, or with some (ARGS=llama-server); builds them the first time
	@tests/real.sh $(ARGS)

docs: $(DOCS_STAMP)  ## Regenerate the documents that come from code, and build the site into site/
	@$(BIN)/python -m docs.generate
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: site/index.html"

bench: $(TEST_STAMP)  ## Measure throughput and latency against nginx and HAProxy, and the cost of a switch
	@$(BIN)/python -m bench.proxy $(ARGS)
	@$(BIN)/python -m bench.switch

bench-quick: $(TEST_STAMP)  ## Compare the working tree with a commit (BASE=HEAD~1), in two minutes
	@$(BIN)/python -m bench.quick --base $(or $(BASE),HEAD~1) $(ARGS)

soak: $(TEST_STAMP)  ## Run ten minutes of random faults and hostile clients (ARGS="--lane trio --seed 2")
	@$(BIN)/python -m bench.soak $(ARGS)

format: $(TEST_STAMP)  ## Format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage run site

$(BIN)/python:
	@echo "== creating the virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmux needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing llmux"
	@$(INSTALL) --editable .
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing llmux and its test tools"
	@$(INSTALL) --editable '.[test,lint]'
	@touch $(RUN_STAMP) $@

$(DOCS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing the tools that build the documentation"
	@$(INSTALL) --editable '.[docs]'
	@touch $(RUN_STAMP) $@

$(SLOW_STAMP): $(TEST_STAMP)
	@echo "== installing real clients, Playwright, and the tools that plot and build the documentation"
	@$(INSTALL) --editable '.[test,lint,docs,clients,ui-test,plot]'
	@touch $(DOCS_STAMP) $@
