# make run   sets everything up and starts: live if there is a sound device, else the demo
# make test  sets everything up and runs the tests
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch where one is to be had; any torch >= 2.11 will do: make test TORCH=torch
TORCH ?= torch==2.13.0
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: run demo test lint bench evaluate system clean

run: $(VENV)/.runtime
	$(BIN)/voicewire start

demo: $(VENV)/.runtime
	$(BIN)/voicewire demo

bench: $(VENV)/.runtime
	$(BIN)/voicewire bench

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p voicewire

# PAIRS: a folder with noisy/ and clean/
evaluate: $(VENV)/.eval
	$(BIN)/python -m tools.evaluate $(PAIRS) $(if $(PEERS),--peers-dir $(PEERS))

# PortAudio for live audio; everything else works without it
system:
	@ldconfig -p | grep -q libportaudio || $(SUDO) apt-get install -y -qq libportaudio2 \
	  || ($(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq libportaudio2) \
	  || echo "no PortAudio: live audio will not work, files and the demo do (apt-get install libportaudio2)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || ($(SUDO) apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV))

$(VENV)/.runtime: pyproject.toml $(BIN)/python | system
	$(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml $(BIN)/python | system
	$(PIP) $(TORCH)
	$(PIP) -e '.[train,dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.eval: pyproject.toml $(VENV)/.dev
	$(PIP) -e '.[train,eval,peers]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
