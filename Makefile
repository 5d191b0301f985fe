# Everything runs from one virtual environment, .venv, made from pyproject.toml and constraints.txt.
# `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   ?= .venv
BIN     = $(VENV)/bin
ARGS   ?=
STAMP   = $(VENV)/.installed
OVERLAY = build/mypy/cipherward

.PHONY: setup demo test lint proto proto-check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
# pip splits the variable at white space: a relative path, which the folder's name is no part of.
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site,evaluation,imaging,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/cipherward demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# mypy does not follow editable installs: it reads the roots through an overlay of links.
$(OVERLAY): setup.py
	rm -rf build/mypy && mkdir -p $(OVERLAY)
	for path in src/cipherward/*; do ln -s "$(CURDIR)/$$path" $(OVERLAY)/; done
	for root in proto crypto coordinator site_agent evaluation; do ln -s "$(CURDIR)/$$root" $(OVERLAY)/$$root; done

lint: $(STAMP) $(OVERLAY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(OVERLAY) && $(MAKE) --no-print-directory $(OVERLAY)
	$(BIN)/mypy -p cipherward

# The generated code is committed: a user needs no compiler. CI checks that it matches.
proto: $(STAMP)
	$(BIN)/python proto/generate.py

proto-check: $(STAMP)
	$(BIN)/python proto/generate.py --check

bench: $(STAMP)
	$(BIN)/cipherward bench crypto $(ARGS)

clean:
	rm -rf $(VENV) build dist demo-run *.egg-info
