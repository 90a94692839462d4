# `make demo`, `make check` and `make test` each do all of their own set-up, in .venv.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
TYPED := build/typecheck
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --benchmark-disable

.PHONY: demo check test lint types clean

demo: $(INSTALLED)
	@$(BIN)/streamchar doctor
	@$(BIN)/streamchar speak "Hello there. This is the first sentence I ever say." --seconds 8 --out demo.mp4

# For every edit: lint, types and the quick tests.
check: lint types
	$(PYTEST) -q -m quick

# The whole proof. The quick checks come first; pytest's own summary is the last line.
test: lint types
	$(PYTEST) --durations 15

lint: $(INSTALLED)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

# mypy takes packages from where they lie: build a tree where kernels/ is streamchar/kernels, and check that.
types: $(INSTALLED)
	@rm -rf $(TYPED)
	@$(BIN)/python setup.py -q build_py --no-compile --build-lib $(TYPED)
	@cp -R bench $(TYPED)
	cd $(TYPED) && MYPYPATH=$(CURDIR)/tests/stubs $(CURDIR)/$(BIN)/mypy --cache-dir $(CURDIR)/.mypy_cache \
		--config-file $(CURDIR)/pyproject.toml -p streamchar -p bench

$(INSTALLED): pyproject.toml constraints.txt setup.py
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11, 3.12 or 3.13 with venv found; name one: make PYTHON=path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
