# `make demo` installs everything into .venv and trains. It needs only python3 (with venv), make and git.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# `make CUDA=cu13`, cu12 or cpu chooses the wheels of torch and DALI. Without it the driver decides (kernels/driver.py).
# An environment variable of this name does not count: some clusters set one to the folder of their CUDA.
CUDA :=
# Only PyTorch's own index has torch for CUDA 12 and for the CPU alone. TORCH_INDEX=... names a mirror of it.
TORCH_INDEX ?= https://download.pytorch.org/whl
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_cu13 := torch
TORCH_cu12 := torch==$(TORCH_VERSION)+cu126 --extra-index-url $(TORCH_INDEX)/cu126
TORCH_cpu := torch==$(TORCH_VERSION)+cpu --extra-index-url $(TORCH_INDEX)/cpu
# DALI for CUDA 13 also runs on a machine without a GPU.
EXTRA_cu13 := cu13
EXTRA_cu12 := cu12
EXTRA_cpu := cu13

# The wheels that are in .venv, empty before the first installation has ended.
INSTALLED := $(patsubst .venv/.installed-%,%,$(wildcard .venv/.installed-*))
# All packages in .venv that other wheels must not meet: pip would keep a torch of the same version, and both DALIs hold
# the module nvidia.dali.
CUDA_PACKAGES = $(strip $(foreach kind,torch- nvidia_ cuda_,$(foreach info,$(notdir \
  $(wildcard .venv/lib/python3*/site-packages/$(kind)*.dist-info)),$(firstword $(subst -, ,$(info))))))

.PHONY: install which packages python demo test soak

install: python
	@wheels=$$($(PYTHON) -m kernels.driver "$(CUDA)" "$(INSTALLED)") && \
	  $(MAKE) --no-print-directory .venv/.installed-$$wheels

# Prints the driver, the choice and the commands of pip, and installs nothing.
which: python
	@wheels=$$($(PYTHON) -m kernels.driver "$(CUDA)" "$(INSTALLED)") && \
	  $(MAKE) --no-print-directory -n packages WHEELS=$$wheels

.venv/.installed-%: setup.py constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "$(PYTHON) has no venv module: apt install python3-venv, then run make again"; exit 2; }
	@rm -f .venv/.installed*
	@$(MAKE) --no-print-directory packages WHEELS=$* INSTALLED=$(INSTALLED)
	@touch $@

packages:
	$(if $(filter-out $(INSTALLED),$(WHEELS)),$(if $(CUDA_PACKAGES),$(PIP) uninstall -q -y $(CUDA_PACKAGES)))
	$(PIP) install -q $(TORCH_$(WHEELS)) -c constraints.txt
	$(PIP) install -q -e '.[$(EXTRA_$(WHEELS)),test]' -c constraints.txt

python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Duet needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) -V): run make PYTHON=python3.12 ..."; exit 2; }

demo: install
	$(PY) -m trainer --exp demo $(if $(filter cpu,$(CUDA)),--device cpu)
	@cat docs/after_demo.txt

test: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@# Pyright checks the types while the tests run. Its output is printed after theirs. The tests keep their bytecode,
	@# even where PYTHONDONTWRITEBYTECODE is set: without it, every worker would compile all tests again.
	@log=$$(mktemp); $(PY) -m pyright >$$log 2>&1 & pyright=$$!; \
	  env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -n 2 --dist worksteal; tests=$$?; \
	  wait $$pyright; types=$$?; cat $$log; rm $$log; \
	  [ $$tests = 0 ] && [ $$types = 0 ]

soak: install
	$(PY) -m pytest -m soak -v
