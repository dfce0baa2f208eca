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
# Those of them that get the tests of what no kernel should change, too; the others get them in `make test-soak`.
INDEPENDENT_ON ?= newest

.PHONY: help setup demo test lint test-host test-guest test-soak test-marathon bench wheel clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo 'make setup   install what is missing (the others do it, too)'
	@echo 'make lint test-host test-guest   the parts of make test'
	@echo 'make test-soak       200 swaps, killed loaders, races, every policy under storms; on both kernels'
	@echo 'make test-marathon   the tests that take minutes each, on both kernels'
	@echo 'make bench   the measurements that the README quotes'

setup: $(STAMP)

$(STAMP): pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) sh tools/setup.sh
	@touch $@

demo: setup
	@$(BIN)/python -m ghostbpf.experiments.demo

# Host tests beside guest tests: an emulated guest keeps little more than one CPU busy.
test: lint
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-host-beside test-guest-beside

test-%-beside:
	@set -o pipefail; $(MAKE) --no-print-directory test-$* 2>&1 | sed -u 's/^/$*: /'

# mypy cannot follow the editable install's import hook: it gets the namespace as a directory.
lint: setup
	@mkdir -p .typing && ln -sfn .. .typing/ghostbpf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typing $(BIN)/mypy --explicit-package-bases -p ghostbpf.loaders -p ghostbpf.schedulers -p ghostbpf.tools -p ghostbpf.vm -p ghostbpf.experiments

test-host: setup
	$(BIN)/python -m pytest -m 'not soak' tests/host

# QEMU itself now and then kills a guest's kernel (status 123): another guest then runs the tests that are left.
define in_guest
	@for kernel in $(KERNELS); do \
		which="$(1)"; \
		case " $(INDEPENDENT_ON) " in *" $$kernel "*) ;; *) which="$$which$(2)" ;; esac; \
		echo "guest tests on the $$kernel sched_ext kernel ($$which)"; \
		rm -f .guest-tests; \
		for guest in 1 2 3 4 5 6 7 8 9; do \
			$(BIN)/ghostbpf vm --kernel $$kernel --cpus 4 --timeout $(3) -- \
				python3 -m pytest -p no:cacheprovider --durations=20 --done=.guest-tests -m "$$which" tests/guest; \
			status=$$?; \
			[ $$status = 123 ] || break; \
			echo 'QEMU killed the guest, which says nothing of the tests: those that are left run in another'; \
		done; \
		rm -f .guest-tests; \
		[ $$status = 0 ] || exit $$status; \
	done
endef

test-guest: setup
	$(call in_guest,not soak and not marathon, and not kernel_independent,3600)

test-soak: setup
	$(BIN)/python -m pytest -m soak tests/host
	$(call in_guest,soak and not marathon, or kernel_independent and not marathon,7200)

# What takes minutes: agents killed and replaced a hundred times, a million messages, thousands of tasks, stress-ng.
test-marathon: setup
	$(call in_guest,marathon,,10800)

bench: setup
	@$(BIN)/python -m ghostbpf.experiments.bench

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .typing build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
