PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
MAIN := $(BIN)/python main.py
DEMO := configs/demo.yaml
DEMO_CKPT := runs/demo/checkpoints/last.ckpt
PUSHT := --config configs/pusht.yaml
PUSHT_LATENTS := $(PUSHT) --config configs/pusht_latents.yaml
PUSHT_CKPT := --ckpt_path runs/pusht/checkpoints/last.ckpt
# More arguments for pytest, as in: make test-unit ARGS="-k rope -x"
ARGS ?=
# Processes that share the test files; as many as there are calm cores.
WORKERS ?= 2
# In the order of folders the long files (browser, integration) come first, so that all processes end together.
SHARED := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo demo-pusht distill-demo play test test-fast test-unit test-parity test-integration test-browser test-gpu lint format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  (PYTHON=/path/to/python3 chooses the interpreter of a new $(VENV))'

install: $(VENV)/.installed  ## create .venv with what training and generating need

install-dev: $(VENV)/.installed-dev  ## add what tests and lint need

# A second call begins anew, in place of the first.
demo: install  ## pretrain a toy generator, teach it actions, generate with it, measure it
	$(MAIN) fit --config $(DEMO) --config configs/demo_backbone.yaml --checkpoint.overwrite true
	$(MAIN) fit --config $(DEMO) --checkpoint.overwrite true
	$(MAIN) predict --config $(DEMO) --ckpt_path $(DEMO_CKPT)
	$(MAIN) test --config $(DEMO) --ckpt_path $(DEMO_CKPT)

# The store of latents goes with the recording that it was made of.
demo-pusht: $(VENV)/.installed-pusht  ## the same from a recording of Push-T, a real environment
	$(MAIN) record --env lightning_action:make_pusht --policy lightning_action:PushTWanderer --episodes 200 --steps 101 --frame_size 128 128 --prompt "push the T" --output runs/pusht/recording --overwrite
	$(MAIN) inspect $(PUSHT) --output runs/pusht/contact_sheet.png
	rm -rf runs/pusht/latents
	$(MAIN) encode $(PUSHT) --model.pretrained null --output runs/pusht/latents
	$(MAIN) fit $(PUSHT_LATENTS) --config configs/pusht_backbone.yaml --checkpoint.overwrite true
	$(MAIN) fit $(PUSHT_LATENTS) --checkpoint.overwrite true
	$(MAIN) predict $(PUSHT) $(PUSHT_CKPT)
	$(MAIN) test $(PUSHT) $(PUSHT_CKPT)

distill-demo: install  ## distil the run in runs/chance into one, two and four steps, and measure all in one table
	$(BIN)/python -m benchmarks.distill_demo --run runs/chance --out runs/distill_demo

play: $(VENV)/.installed-play $(DEMO_CKPT)  ## steer the demo's world in the browser
	$(MAIN) play --config $(DEMO) --ckpt_path $(DEMO_CKPT) $(ARGS)

$(DEMO_CKPT):
	@echo 'Expected a trained demo, found no $@: make demo' >&2; exit 1

test: install-dev  ## run all tests; without a GPU or a chromium those that need one are left out
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

test-fast: install-dev  ## run unit and parity tests but those marked distributed or slow
	$(BIN)/python -m pytest $(SHARED) -m '(unit or parity) and not distributed and not slow' $(ARGS)

test-unit test-parity test-integration test-browser test-gpu: install-dev
	$(BIN)/python -m pytest -m $(@:test-%=%) $(ARGS)
# One line each, for `make help`:
test-unit:  ## run the tests of single modules
test-parity:  ## run the comparisons with references
test-integration:  ## run the end-to-end tests
test-browser:  ## run the tests of the page, with a headless chromium
test-gpu:  ## run the tests that need a GPU

lint: install-dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Those that need a trained run or a GPU are left to their commands in benchmarks/README.md.
BENCHMARKS := $(filter-out %/distill_demo.py %/wrong_actions.py %/gpu.py,$(wildcard benchmarks/[!_]*.py))
bench: install-dev  ## run every benchmark that needs no trained run and no GPU
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python -m "benchmarks.$$(basename "$$script" .py)" || exit 1; done

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamps make a second call quick, and a changed setup.cfg or constraints.txt installs anew.
$(VENV)/.installed: setup.cfg constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-pusht: setup.cfg constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[pusht]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-play: setup.cfg constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[data,play]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: setup.cfg constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@command -v '$(PYTHON)' >/dev/null || { echo 'Expected Python 3.10 or newer, found no "$(PYTHON)": name one with make PYTHON=/path/to/python3' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else "Expected Python 3.10 or newer, $(PYTHON) is %d.%d: name another with make PYTHON=/path/to/python3" % v[:2])'
	'$(PYTHON)' -m venv $(VENV)
