# One command sets up and runs the main job, another sets up and passes the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= configs/digits.yaml
BASE   ?= HEAD
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: run test proofs processors golden lint docs docs-test docs-deploy browser gpu bench ui clean

run: $(READY)          ## train: make run [CONFIG=configs/x.yaml] [ARGS="rounds=5 --resume"]
	$(BIN)/fedray run $(CONFIG) $(ARGS)

# One process runs the tests that start Ray, one at a time, and the others run the rest meanwhile (see tests/conftest.py).
test: $(READY)         ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

proofs: $(READY)       ## slow proofs: published figures, fault runs, memory over 300 rounds
	$(BIN)/python -m pytest -m slow -rs --durations=0 --timeout=5400 $(ARGS)

processors: $(READY)   ## the tests that compute, with the kernels of older processors
	$(BIN)/python -m tests.processors $(ARGS)

golden: $(READY)       ## ten runs at a revision and here, compared byte by byte: make golden BASE=main [ARGS="w3 client --expect w3"]
	$(BIN)/python -m tests.golden $(BASE) $(ARGS)

lint: $(READY) docs    ## format, lint, types, import contracts, the documentation's site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)         ## the documentation's site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-test: $(READY)    ## the pages whose commands start Ray, as a reader runs them
	$(BIN)/python -m pytest -m 'slow or not slow' tests/unit/test_docs_blocks.py tests/integration/test_docs_commands.py $(ARGS)

docs-deploy: $(READY)  ## publishes the site on the branch gh-pages of the remote
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs gh-deploy --strict

browser: $(READY)      ## a run's report and its pages in MLflow, as Chromium shows them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' -rs tests/browser $(ARGS)

gpu: $(READY)          ## what only a GPU can show, in 8 minutes: make gpu [ARGS="--budget 480 --only engines"]
	$(BIN)/python -m tests.gpu $(ARGS)

bench: $(READY)        ## benchmarks
	$(BIN)/python -m tests.benchmarks $(ARGS)

ui: $(READY)           ## the MLflow UI over the local store
	$(BIN)/fedray ui

# torch first, as pinned: a plain "torch" on Linux brings the CUDA packages with it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -i '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

include cluster/images.mk
