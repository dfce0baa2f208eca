# SPDX-License-Identifier: Apache-2.0
# make demo    see Biff schedule a real workload on a sched_ext kernel
# make test    style, types, host tier, guest tier on the oldest and the newest kernel

SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON := /usr/bin/python3
STAMP  := $(VENV)/.ready

# The kernels that `make test` boots; `ghostbpf vm --list` shows what there is.
KERNELS ?= oldest newest

.PHONY: help setup demo test host-then-guest guests-then-budget check lint budget test-host test-soak-host test-guest test-soak test-marathon soak-night bench bench-exact wheel deb docs clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo 'make setup   install what is missing (the others do it, too)'
	@echo 'make check   lint and test-host: what needs no guest'
	@echo 'make lint test-host test-guest test-guest-oldest budget   the parts of make test'
	@echo 'make test-soak       200 swaps, killed loaders, races, every policy under storms; on both kernels'
	@echo 'make test-marathon   the tests that take minutes each, on both kernels'
	@echo 'make soak-night DURATION=600   each policy under storms for 600 s; ARGS="--seed N -k biff" repeats one'
	@echo 'make wheel deb   a Python wheel and a Debian package, in dist/'
	@echo 'make bench   the measurements that the README quotes'
	@echo 'make bench-exact   schedulers compared in instructions; ARGS="--help" shows the options'
	@echo 'make docs    the site of docs/, in build/site; a warning fails it'

setup: $(STAMP)

$(STAMP): pyproject.toml tools/setup.sh $(wildcard schedulers/agents/native/* experiments/*/native/*.[ch] examples/*.c)
	@PYTHON=$(PYTHON) VENV=$(VENV) sh tools/setup.sh
	@touch $@

demo: setup
	@$(BIN)/python -m ghostbpf.experiments.demo

# An emulated guest keeps little more than one CPU busy. Host tests measure shares of CPU time: they share the machine
# with one guest, and the first kernel's guest runs after them.
test: setup
	@$(MAKE) --no-print-directory --keep-going --jobs=3 beside-lint host-then-guest guests-then-budget

host-then-guest:
	@$(MAKE) --no-print-directory beside-test-host; host=$$?; \
	$(MAKE) --no-print-directory beside-test-guest-$(firstword $(KERNELS)) && exit $$host

guests-then-budget:
	@$(MAKE) --no-print-directory --keep-going $(patsubst %,beside-test-guest-%,$(wordlist 2,9,$(KERNELS))); guests=$$?; \
	$(MAKE) --no-print-directory beside-budget && exit $$guests

beside-%:
	@set -o pipefail; $(MAKE) --no-print-directory $* 2>&1 | sed -u 's/^/$(*:test-%=%): /'

# For the inner loop: no guest, but for the few that host tests boot.
check: lint test-host

# mypy cannot follow the editable install's import hook: it gets the namespace as a directory.
lint: setup
	@mkdir -p .typing && ln -sfn .. .typing/ghostbpf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/python tests/lint/words.py
	MYPYPATH=.typing $(BIN)/mypy --explicit-package-bases -p ghostbpf.loaders -p ghostbpf.schedulers -p ghostbpf.tools -p ghostbpf.vm -p ghostbpf.experiments
	MYPYPATH=.typing $(BIN)/mypy --explicit-package-bases packaging/deb.py

test-host: setup
	$(BIN)/python -m pytest -m 'not soak' tests/host

# Agents use their native half on the newest kernel, and do without on the oldest: the same tests run on both.
native = $(if $(filter oldest,$(1)),off,on)

# $(call in_guest,KERNEL,MARKS,TIMEOUT,ARGUMENTS): the tests with these marks on that kernel.
# QEMU now and then kills a guest's kernel (status 123): another guest then runs the tests that are left.
define in_guest
	@echo "guest tests on the $(1) sched_ext kernel ($(2))"; \
	rm -f .guest-tests-$(1); \
	for guest in 1 2 3 4 5 6 7 8 9; do \
		$(BIN)/ghostbpf vm --kernel $(1) --cpus 4 --timeout $(3) --precompile -- \
			env GHOSTBPF_NATIVE=$(call native,$(1)) python3 -m pytest -p no:cacheprovider --durations=0 --durations-min=10 --done=.guest-tests-$(1) -m "$(2)" tests/guest $(4); \
		status=$$?; \
		[ $$status = 123 ] || break; \
		echo 'QEMU killed the guest, which says nothing of the tests: those that are left run in another'; \
	done; \
	rm -f .guest-tests-$(1); \
	exit $$status
endef

test-guest: $(KERNELS:%=test-guest-%)
test-soak: test-soak-host $(KERNELS:%=test-soak-%)
test-marathon: $(KERNELS:%=test-marathon-%)

# A test that no kernel should change runs on one kernel, and in `make test-soak` on the others, too. Most run on the
# newest; those marked on="oldest" keep the other guest as busy.
shared = $(filter oldest,$(KERNELS))
elsewhere = $(if $(filter oldest,$(1)),kernel_independent and not kernel_independent(on='oldest'),$(if $(shared),kernel_independent(on='oldest')))

test-guest-%: setup
	$(call in_guest,$*,not soak and not marathon and not night$(if $(call elsewhere,$*), and not ($(call elsewhere,$*))),3600)

# Instructions of Biff's and an agent's programs and decisions, at most 10 % above experiments/budget.jsonl in one of two
# runs. After an intended change: make bench-exact ARGS="--json biff fifo_centralized", and put the new values there.
budget: setup
	$(BIN)/python -m ghostbpf.experiments.bench_exact --baseline experiments/budget.jsonl --limit 10 biff fifo_centralized

test-soak-host: setup
	$(BIN)/python -m pytest -m soak tests/host

# For the guests' Python: the SDK of ghostbpf mcp, of which Debian 13 has no package, and Dask's scheduler and workers.
build/guest-python: pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade --target $@ --python-version 3.13 --only-binary :all: \
		$$($(PYTHON) -c 'import tomllib; extras = tomllib.load(open("$<", "rb"))["project"]["optional-dependencies"]; print(*extras["mcp"], *extras["dask"])')
	@touch $@

test-soak-%: setup deb build/guest-python
	$(call in_guest,$*,not marathon and (soak$(if $(call elsewhere,$*), or $(call elsewhere,$*))),7200)

# What takes minutes: agents killed and replaced a hundred times, a million messages, thousands of tasks, stress-ng.
test-marathon-%: setup
	$(call in_guest,$*,marathon,10800)

# Each policy under storms for DURATION seconds; see tests/guest/test_night.py. In a slow guest, it takes up to 20 minutes
# more: to load all policies before, and to stop and check the tasks after each round.
DURATION ?= 3600
night = $$(( $(DURATION) + 1200 ))

soak-night: $(KERNELS:%=soak-night-%)

soak-night-%: setup
	$(call in_guest,$*,night,$$(( $(night) * $$($(BIN)/ghostbpf policies --json | wc -l) )),-rA --timeout=$(night) --duration=$(DURATION) $(ARGS))

bench: setup
	@$(BIN)/python -m ghostbpf.experiments.bench_readme

bench-exact: setup
	@$(BIN)/python -m ghostbpf.experiments.bench_exact $(ARGS)

wheel: setup
	$(BIN)/python -m build --wheel

# The build runs in its own Debian root, so setup does not install the packaging tools.
deb: setup
	$(BIN)/python packaging/deb.py build dist

# Material for MkDocs prints an advertisement of its successor unless this is set.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf examples/tickets-* experiments/bench/native/loads-* experiments/bench/native/memcached-load-* experiments/bench/native/keep_policy-* experiments/micro/native/micro-* experiments/rocksdb/native/rocksdb-* experiments/rocksdb/native/antagonist-* $(VENV) .typing build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
