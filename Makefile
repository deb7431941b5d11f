# Two ways to begin, on a machine that has only Python 3.11 or newer and a package registry:
#
#   make demo   installs into .venv and runs `unmask quickstart`
#   make test   installs into .venv with the test extra and runs the whole suite
#
# uv is used where it is on PATH (it installs faster; like pip it then compiles, once, what every start would), else venv and pip. Another Python: make demo PYTHON=python3.13

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv)
PYTEST_WORDS ?=

.PHONY: help demo test lint clean

help:
	@sed -n '3,4p' Makefile | cut -c3-

demo: $(VENV)/.has-demo
	$(VENV)/bin/unmask quickstart

test: $(VENV)/.has-test
	$(VENV)/bin/python -m pytest $(PYTEST_WORDS)

lint: $(VENV)/.has-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

# One stamp an extra, so that a second call installs nothing; `test` holds all that `demo` does. A changed pyproject.toml installs again.
$(VENV)/.has-demo: $(VENV)/bin/python pyproject.toml
	@[ -f $(VENV)/.has-test ] && [ $(VENV)/.has-test -nt pyproject.toml ] || $(call install,demo)
	@touch $@

$(VENV)/.has-test: $(VENV)/bin/python pyproject.toml
	@$(call install,test)
	@touch $@

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "unmask needs Python 3.11 or newer: install one, or say which with make PYTHON=…" >&2; exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(if $(UV),$(UV) venv --quiet --seed --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV),$(PYTHON) -m venv $(VENV))

define install
{ echo "installing unmask[$(1)] (PyTorch alone is gigabytes: some minutes)"; \
	$(if $(UV),$(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python,$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check) -e ".[$(1)]"; }
endef

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
