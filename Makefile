# make demo | test | check | torture | fuzz | bench | clean. What a target needs is built once, into .venv.

PYTHON ?= python3
# How many tests run at once: most of them wait. 1: one after another, in this process.
JOBS ?= 4
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Bytecode is kept, whatever the shell says that started this.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := pyproject.toml setup.py pact/session/native/host.c $(wildcard pact/_fast/*.pyx pact/_fast/*.pxd)

.DEFAULT_GOAL := help
.PHONY: help deps demo demo-cluster compiled collected test test-quick check lint types imports torture fuzz bench clean

help:
	@echo "make deps    as root: install what the tests need, on Debian and on Enterprise Linux"
	@echo "make demo    half a minute of pact on this machine's kernel, in namespaces of its own"
	@echo "make demo-cluster    two dozen nodes, three aggregators and an etcd in namespaces; some of them die"
	@echo "make test    the whole test suite (as root: all of it), four tests at once; JOBS=1: one"
	@echo "make test-quick  the tests that need no kernel, in less than a minute"
	@echo "make check   lint, types, import rules, spec links, and the tests"
	@echo "make torture SECONDS=600 SEED=7    seeded torture of a real agent and cluster; without SECONDS until it is stopped"
	@echo "make fuzz SECONDS=600    coverage-guided fuzzing of every entrance, and of the C under sanitizers; without SECONDS until it is stopped"
	@echo "make bench   the benchmarks, as ratios to what they are compared with"
	@echo "make clean   remove what was built"

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pact needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# The package with its extensions, for the demonstration.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

# The client of etcd beside it.
$(VENV)/.built-cluster: $(VENV)/.built
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[etcd]'
	touch $@

# And what tests, lint and benchmarks need.
$(VENV)/.dev: $(VENV)/.built
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# And the fuzzer, where there is a package of it for this Python; where there is none, its tests say so.
$(VENV)/.fuzz: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=3' || echo "without atheris"
	touch $@

# gcc, headers and make build the kernels; the others are what some tests look at, or run.
DEBIAN := gcc libc6-dev make python3-dev python3-venv util-linux mount procps psmisc iproute2 kmod acl attr rpm e2fsprogs xfsprogs btrfs-progs \
  etcd-server etcd-client nftables openssl libzmq3-dev pkg-config strace patch systemd clang puppet cfengine3 \
  ansible-core dpkg-dev dnf createrepo-c zypper systemd-container mmdebstrap slurmctld slurmd slurm-client munge \
  chromium fonts-dejavu-core bash zsh fish vim less openssh-server openssh-client asciinema
# etcd is in no repository of Enterprise Linux: its tests are skipped there.
ENTERPRISE := gcc make python3.11-devel util-linux procps-ng psmisc iproute kmod acl attr rpm-build e2fsprogs xfsprogs nftables openssl \
  zeromq-devel pkgconf-pkg-config strace patch systemd clang createrepo_c bash zsh vim-enhanced less openssh-server openssh-clients

# Of daemons that come with a package (etcd, Slurm, munge) none is started: the tests start their own.
POLICY := /usr/sbin/policy-rc.d

deps:
	@if command -v apt-get >/dev/null; then \
	  if [ ! -e $(POLICY) ]; then trap 'rm -f $(POLICY)' EXIT; printf '#!/bin/sh\nexit 101\n' > $(POLICY); chmod 755 $(POLICY); fi; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; \
	elif command -v dnf >/dev/null; then dnf install -y -q $(ENTERPRISE); \
	else echo "neither apt-get nor dnf is here: install the like of $(DEBIAN)"; exit 1; fi

demo: $(VENV)/.built
	@$(BIN)/python demo/demo.py

demo-cluster: $(VENV)/.built-cluster
	@$(BIN)/python demo/cluster.py

# Agents and commands start by the thousand in the tests, and each would compile what no file of bytecode is there for.
compiled: $(VENV)/.dev
	@$(BIN)/python -m compileall -q pact

# And each of the processes of ``test`` would make bytecode of the tests: that takes four times as long as reading it.
# What is wrong with them is told when they run.
collected: compiled $(VENV)/.collected

$(VENV)/.collected: $(VENV)/.dev $(wildcard tests/*.py tests/*/*.py tests/*/*/*.py)
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null || true
	@touch $@

test: collected
	$(BIN)/python tests/suite.py --jobs $(JOBS)

# What needs no kernel: the core, what travels, what is read and written.
QUICK := $(wildcard $(addprefix tests/test_,core_*.py groups*.py journal_*.py relay*.py ops.py older_data.py wire.py \
  questions.py commands.py member.py uplink.py outbox.py backlog.py acks.py seals.py shares.py twins.py public.py \
  requests.py config.py toml.py render.py folds.py nodesets.py limits.py strict.py sysctl_text.py litter.py textdiff.py \
  tidy.py tidy_kinds.py member.py specs.py))

# Lint and types, too, are among the tests. They have targets of their own, and types alone take a minute the first time.
test-quick: compiled
	$(BIN)/python -m pytest -q -m "not root and not alone" --numprocesses=2 --dist=loadscope $(QUICK) \
	  --deselect tests/test_tidy.py::test_ruff_has_nothing_to_say \
	  --deselect tests/test_tidy.py::test_types_are_strict --deselect tests/test_tidy.py::test_imports_run_one_way

lint: $(VENV)/.dev
	$(BIN)/ruff check pact tests bench demo setup.py
	$(BIN)/ruff format --quiet --check pact tests bench demo setup.py
	$(BIN)/cython-lint --max-line-length=120 pact/_fast

types: $(VENV)/.dev
	$(BIN)/mypy --strict

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

# Spec links (an id without a test, a test without an id) are among the tests.
check: $(VENV)/.fuzz
	@$(MAKE) --jobs=2 --output-sync=target lint types imports collected
	@$(MAKE) test

# As root: kills, full and failing disks, boots, frozen processes, cut links. Prints seeds of what it finds.
torture: compiled
	$(BIN)/python tests/torture/run.py --seconds $(or $(SECONDS),0) --seed $(or $(SEED),0)

# A process for each target in turn. What is found is saved below build/fuzz/found, and how to run it again is printed.
fuzz: $(VENV)/.fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),0)

bench: compiled
	$(BIN)/python -m bench.run

clean:
	rm -rf $(VENV) build dist *.egg-info pact/_fast/*.so pact/_fast/*.c
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
