# `make demo` installs everything into .venv and trains. It needs only python3 (with venv), make and git.
PYTHON ?= python3
CUDA ?= cu13
PY := .venv/bin/python

.PHONY: install demo test soak

install: .venv/.installed

.venv/.installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Duet needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) -V): run make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "$(PYTHON) has no venv module: apt install python3-venv, then run make again"; exit 2; }
	$(PY) -m pip install -q --disable-pip-version-check torch -c constraints.txt
	$(PY) -m pip install -q --disable-pip-version-check -e '.[$(CUDA),test]' -c constraints.txt
	@touch $@

demo: install
	$(PY) -m trainer --exp demo

test: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@# Pyright checks the types while the tests run. Its output is printed after theirs.
	@log=$$(mktemp); $(PY) -m pyright >$$log 2>&1 & pyright=$$!; \
	  $(PY) -m pytest -n 2 --dist worksteal; tests=$$?; \
	  wait $$pyright; types=$$?; cat $$log; rm $$log; \
	  [ $$tests = 0 ] && [ $$types = 0 ]

soak: install
	$(PY) -m pytest -m soak -v
