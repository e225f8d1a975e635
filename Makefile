# `make demo` and `make test` work on a fresh machine with Python 3.11 or 3.12 and no GPU: both make the environment first.
PYTHON ?= python3
# The releases that the default test suite runs the overlay against, besides the one in the environment.
RELEASES := 0.5.6.post2 0.5.7 0.5.8 0.5.8.post1 0.5.10 0.5.10.post1 0.5.11 0.5.12 0.5.12.post1 0.5.13 0.5.19 0.5.23

.PHONY: help venv releases demo serve test matrix matrix-update catalogue behaviour peers lint lock clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make demo           serve a tiny model with the real sglang on a simulated MI300X and check its answers"
	@echo "make serve          the same server, left up in the foreground"
	@echo "make test           the whole test suite"
	@echo "make matrix         every patch on every release of sglang on PyPI, against what was reviewed"
	@echo "make matrix-update  take what the releases show now as reviewed, and write the documents"
	@echo "make catalogue      write docs/patches.md and docs/matrix.svg again"
	@echo "make behaviour      every patch on the real classes of every release, into the documents (about 40 min)"
	@echo "make peers          fetch what the benchmarks compare with into .peers"
	@echo "make lint           ruff and mypy"
	@echo "make lock           resolve requirements/*.in into requirements/*.txt again"
	@echo "make clean          remove checkpoints, logs and caches"
	@echo "make distclean      remove the environment and the fetched releases as well"

venv:
	@$(PYTHON) -m demo.provision

releases:
	@$(PYTHON) -m demo.provision $(addprefix --release ,$(RELEASES))

demo: venv
	@.venv/bin/python -m demo

serve: venv
	@.venv/bin/python -m demo --serve

# Two workers, whatever the machine: each may hold a server of 3 GB and its schedulers.
test: releases
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

matrix: venv
	@.venv/bin/python -m matrix

matrix-update: venv
	@.venv/bin/python -m matrix update

catalogue: venv
	@.venv/bin/python -m matrix catalogue

behaviour: releases
	@.venv/bin/python -m matrix behaviour; status=$$?; .venv/bin/python -m matrix catalogue && exit $$status

peers: venv
	@.venv/bin/python -m benchmarks.peers

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	@$(PYTHON) -m demo.lock

clean:
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -not -path './.venv/*' -not -path './.releases/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .releases
