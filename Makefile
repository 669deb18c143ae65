# From recordings to a model that speaks. `make help` lists the commands.
# Needs Python 3.11 or newer with pip, and make. Everything else is installed into .venv.

PYTHON ?= python3
PROFILE ?= demo
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := .uv/bin/uv
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help env demo run test slow lint ui lock clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

env: $(STAMP)  ## the environment in .venv, from requirements.lock (done once)

demo: env  ## recordings -> model -> report: the pipeline with the parameters in params.yaml
	@$(RUN) dvc repro

run: env  ## the pipeline with a profile of conf/: make run PROFILE=digits
	@$(RUN) python -m pipelines.repro --profile $(PROFILE)

# Those of pipelines apart: where Prefect has run, a forked process (a loader's worker) ends with an error.
test: env  ## the tests, a file a process at a time on up to four cores
	@$(RUN) python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --ignore tests/pipelines
	@$(RUN) python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile tests/pipelines

slow: env  ## the tests that take minutes: stages of a real pipeline, killed and started again
	@$(RUN) python -m pytest -m slow -n logical --maxprocesses 2 --dist loadfile --ignore tests/pipelines
	@$(RUN) python -m pytest -m slow -n logical --maxprocesses 2 --dist loadfile tests/pipelines

lint: env  ## style and mistakes
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

ui: env  ## MLflow's pages on http://127.0.0.1:5000
	@DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true $(RUN) mlflow ui --host 127.0.0.1 --port 5000 \
	  --backend-store-uri "sqlite:///$(CURDIR)/mlflow.db"

lock: $(UV)  ## requirements.lock anew, after pyproject.toml changed
	@$(UV) pip compile pyproject.toml --extra dev --generate-hashes --universal --no-annotate --upgrade \
	  --custom-compile-command "make lock" --quiet -o requirements.lock

clean:  ## remove what the pipeline made: data, models, metrics, report, records; .venv and DVC's cache stay
	@rm -rf data models metrics plots report mlartifacts mlruns mlflow.db* .work

# uv stands beside the environment, not in it: `uv pip sync` removes from .venv what the lock does not name.
$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input --target .uv "uv==$(UV_VERSION)"

# Bytecode at once: where PYTHONDONTWRITEBYTECODE is set, each process would compile what it imports (20 s a stage).
$(STAMP): requirements.lock pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --no-project --no-python-downloads --python "$$(command -v $(PYTHON))" $(VENV)
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(UV) pip sync --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
