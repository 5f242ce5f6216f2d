# Two commands on a fresh machine (Python 3.11 or newer, make, git): `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# They are made again when what they were installed from has changed.
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
SLOW_STAMP := $(VENV)/.installed-slow
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# guest.py's finally blocks wait in asyncio, where no scope can shield; keepalive.py raises what the
# cancelled request has raised; beside.py raises in Trio's task what a thread has raised.
ASYNC_EXCEPTIONS := llmux/server/guest.py:ASYNC102,ASYNC103 llmux/proxy/keepalive.py:ASYNC103
ASYNC_EXCEPTIONS += llmux/proxy/beside.py:ASYNC103,ASYNC104

# Each llmux that a test starts would compile all of llmux.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test lint unit compiled coverage test-slow test-real docs bench soak format clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: $(RUN_STAMP)  ## Serve llmux.yaml on port 3000, with two stand-in models
	@echo "== llmux: serving llmux.yaml (stop with Ctrl-C)"
	@exec $(BIN)/llmux -c llmux.yaml

test: $(TEST_STAMP)  ## What CI runs: format, lint, types, import rules, tests
	@$(MAKE) --no-print-directory --jobs=2 lint compiled
	@$(MAKE) --no-print-directory unit

# Once and while the linters run, not in each process that runs tests.
compiled: $(TEST_STAMP)
	@$(BIN)/python -m pytest --collect-only -q > /dev/null || true

lint: $(TEST_STAMP)  ## Format, lint, types and import rules
	@echo "== format"
	@$(BIN)/ruff format --check --quiet .
	@echo "== lint"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/flake8 --select=ASYNC1,ASYNC2 --extend-ignore=ASYNC109,ASYNC124,ASYNC127 \
		--per-file-ignores='$(ASYNC_EXCEPTIONS)' llmux
	@git ls-files -co --exclude-standard '*.sh' .ci/run | xargs $(BIN)/shellcheck
	@echo "== types"
	@$(BIN)/mypy
	@echo "== import rules"
	@$(BIN)/lint-imports --no-cache > .venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

unit: $(TEST_STAMP)  ## The tests that need nothing but this machine's loopback
	@echo "== tests"
	@$(BIN)/python -m pytest -n 4 --dist=worksteal -m "not slow and not real" $(ARGS)

coverage: $(TEST_STAMP)  ## The same tests, with how much of the code they run (takes twice as long)
	@$(BIN)/coverage run -m pytest -q -m "not slow and not real" $(ARGS)
	@$(BIN)/coverage report --skip-covered --skip-empty

test-slow: $(SLOW_STAMP)  ## Tests that take minutes, or need real clients or a browser
	@$(BIN)/python -m pytest -m slow $(ARGS) || { [ $$? -eq 5 ] && echo "no test is slow yet"; }

test-real: $(TEST_STAMP)  ## Two real llama.cpp servers (compiles llama.cpp: minutes, the first time)
	@tests/real.sh $(ARGS)

docs: $(DOCS_STAMP)  ## Build the documentation's site into site/ (pages made from the code are made again)
	@$(BIN)/python -m docs.generate
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: site/index.html"

bench: $(TEST_STAMP)  ## Throughput and latency against nginx and HAProxy, and the cost of a switch
	@$(BIN)/python -m bench.proxy $(ARGS)
	@$(BIN)/python -m bench.switch

soak: $(TEST_STAMP)  ## Ten minutes of faults and hostile clients at random (ARGS="--lane trio --seed 2")
	@$(BIN)/python -m bench.soak $(ARGS)

format: $(TEST_STAMP)  ## Format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) .venv-real .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage run site

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
	@echo "== installing what makes the documentation's site"
	@$(INSTALL) --editable '.[docs]'
	@touch $(RUN_STAMP) $@

$(SLOW_STAMP): $(TEST_STAMP)
	@echo "== installing real clients, what drives a browser, draws, and makes the documentation's site"
	@$(INSTALL) --editable '.[test,lint,docs,clients,ui-test,plot]'
	@touch $(DOCS_STAMP) $@
