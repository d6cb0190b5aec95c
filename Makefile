# Each target does all of its own set-up: a virtual environment in $(VENV), then the work.
PYTHON ?= python3
VENV ?= .venv

.PHONY: quickstart test test-slow soak wheel lint docs gpu-plan

quickstart: $(VENV)/base
	$(VENV)/bin/python -m experiments.random_pretrain \
	    --flagfile=experiments/flagfiles/quickstart.flags --resume

test: $(VENV)/test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m slow
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m numerics tests/*.py

soak: $(VENV)/test
	$(VENV)/bin/python -m tests.helpers.soak --kills=20

# The wheel as a user has it: in an environment of its own, without the checkout on its path.
wheel: $(VENV)/test
	rm -rf $(VENV)/dist
	$(VENV)/bin/python -m build --outdir $(VENV)/dist .
	$(PYTHON) -m venv --clear $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet $(VENV)/dist/*.whl
	$(VENV)/wheel/bin/python -I -m pip check
	$(VENV)/wheel/bin/python -I tests/helpers/wheel_smoke.py

# The steps of docs/gpu.md at a tiny size, on any device.
gpu-plan: $(VENV)/base
	for step in convolutions net3 net5; do \
	    $(VENV)/bin/python -m benchmarks.gpu_plan $$step --scale=smoke --out=runs/gpu_plan/out || exit 1; \
	done

lint: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Runs the tutorials; a broken link, reference or tutorial is an error.
docs: $(VENV)/docs
	$(VENV)/bin/python -m mkdocs build --strict

$(VENV)/base: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/docs: $(VENV)/base
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@
