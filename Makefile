# Two commands on a fresh machine, as root: `make demo` and `make test`.
# Each installs what it needs; a second run starts at once.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
.DEFAULT_GOAL := help
.PHONY: help demo test kills rounds test-versions lint lock bench bench-vm bench-report soak tools tools-for-tests tools-vm vm-image wheel man krew uninstall

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: tools .venv/ready ## Put rules on a throw-away pod and show declared against measured (1 minute)
	@.venv/bin/podmgr demo

test: tools-for-tests vm-image ## Run all tests, on the real kernel and in a virtual machine (needs root)
	@.venv/bin/python -m pytest

kills: tools .venv/ready-to-test ## Kill each command and watch at random moments, KILLS times (100; hours), as root
	@PODMGR_TEST_KILLS=$(or $(KILLS),100) .venv/bin/python -m pytest -s tests/kernel/test_kills.py tests/kube/test_kills_of_watch.py

rounds: tools .venv/ready-to-test ## Apply and clean ROUNDS times (10000; hours) and see that nothing grows, as root
	@PODMGR_TEST_ROUNDS=$(or $(ROUNDS),10000) .venv/bin/python -m pytest -s tests/kernel/test_rounds.py

test-versions: tools .venv/ready-to-test ## Run the unit tests with the newest and the oldest libraries that pyproject.toml admits
	@.ci/test-versions

lock: .venv/ready-to-test ## Lock the newest libraries that pyproject.toml admits, with their hashes
	@.ci/lock

lint: tools .venv/ready-to-test ## Check style, types, and that imports go down only
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

bench: tools .venv/ready-to-test ## Measure podmgr beside its peers, as root (hours; ARGS='--seconds 10 bandwidth packet' chooses)
	@.venv/bin/python -m tests.bench $(ARGS)

bench-vm: vm-image ## The same in a virtual machine that has fq and netem, as root (hours)
	@.venv/bin/python -m tests.bench --vm $(ARGS)

bench-report: .venv/ready-to-test ## Write tests/bench/REPORT.md and its charts from the latest results
	@.venv/bin/python -m tests.bench.report

soak: tools .venv/ready-to-test ## Let pods, rules, the API server and podmgr come and go, as root (an hour; SECONDS=600)
	@.venv/bin/python -m tests.bench --seconds $(or $(SECONDS),3600) soak

wheel: tools .venv/ready-to-test ## Build the wheel into dist/
	@.venv/bin/python -m build --wheel

man: .venv/ready ## Write the manual page dist/podmgr.1, made of what --help says
	@mkdir -p dist
	@.venv/bin/python .ci/make-man > dist/podmgr.1

krew: .venv/ready ## Write kubectl podmgr as an archive for krew into dist/, with its manifest
	@.venv/bin/python .ci/make-krew dist

tools: # clang, bpftool, libbpf headers, iproute2, iperf3
	@.ci/install-tools

VM_TOOLS := qemu-system-x86_64 debootstrap cpio depmod mke2fs setpriv

tools-for-tests:
	@.ci/install-tools systemd-analyze groff $(VM_TOOLS)

tools-vm: # what tests/vm needs
	@.ci/install-tools $(VM_TOOLS)

vm-image: tools-vm .venv/ready-to-test # made once, in about 2 minutes
	@.venv/bin/python -m tests.vm.image

.venv/ready: pyproject.toml .ci/locks/build.txt .ci/locks/run.txt
	@.ci/make-venv run
	@touch $@

.venv/ready-to-test: pyproject.toml .ci/locks/build.txt .ci/locks/test.txt
	@.ci/make-venv test
	@touch .venv/ready $@

uninstall: ## Remove what podmgr attached, and the virtual environment
	@if [ -x .venv/bin/podmgr ]; then .venv/bin/podmgr clean; fi
	@rm -rf .venv
