# What a developer runs. `pip install -e '.[dev]'` first; everything here uses that environment's tools.
PYTHON ?= python

.PHONY: check test core guests wasi layout bench soak docs demo

check:  ## lint, types, layers, and the committed binaries against their sources
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	$(PYTHON) tools/generate_layout.py --check
	$(PYTHON) tools/build_core.py --check
	$(PYTHON) tools/build_guests.py --check
	$(PYTHON) tools/build_wasi.py --check

test:  ## the whole test suite
	pytest -n auto

core:  ## compile the allocator to shmwasm/core/core.wasm
	$(PYTHON) tools/build_core.py

guests:  ## compile the guests of the demo and of the examples
	$(PYTHON) tools/build_guests.py

wasi:  ## make WASI's adapters from the table of its functions
	$(PYTHON) tools/build_wasi.py

layout:  ## write shmwasm/core/layout.py from the C header
	$(PYTHON) tools/generate_layout.py

bench:  ## measure the budgets beside their peers: a table, JSON, and the page with plots
	$(PYTHON) -m benchmarks --page docs/benchmarks

soak:  ## the stress suite, over and over, until it fails or is interrupted
	while SHMWASM_STRESS=$${SHMWASM_STRESS:-5} pytest -n auto tests/stress tests/integration/client/test_reentry.py; do :; done

docs:  ## build the documentation into docs/_build
	sphinx-build --fail-on-warning --builder html docs docs/_build/html

demo:  ## the main job on real input
	shmwasm demo
