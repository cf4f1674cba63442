# make run   sets everything up and starts: live if there is a sound device, else the demo
# make test  sets everything up and runs the tests
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch where one is to be had; any torch >= 2.11 will do: make test TORCH=torch
TORCH ?= torch==2.13.0
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: run demo test lint bench evaluate soak system sound-servers browser compiler clean

run: $(VENV)/.runtime
	$(BIN)/voicewire start

demo: $(VENV)/.runtime
	$(BIN)/voicewire demo

bench: $(VENV)/.runtime
	$(BIN)/voicewire bench

test: $(VENV)/.dev | sound-servers browser compiler
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

# PulseAudio and PipeWire with null devices, for the tests of live audio (which say so and skip where a server is missing)
SERVERS := pulseaudio pulseaudio-utils pipewire pipewire-bin pipewire-jack wireplumber dbus-daemon libasound2-plugins
sound-servers:
	@for p in pulseaudio pipewire wireplumber dbus-daemon pactl; do command -v $$p >/dev/null || missing=1; done; \
	  [ -z "$$missing" ] || $(SUDO) apt-get install -y -qq --no-install-recommends $(SERVERS) \
	  || ($(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $(SERVERS)) \
	  || echo "no sound servers: the tests of live audio will be skipped (apt-get install $(SERVERS))"

# 30 minutes of live audio under load on each server; appends to tools/SOAK.md
MINUTES ?= 30
soak: $(VENV)/.runtime | sound-servers
	$(PIP) 'tqdm>=4.66,<5'
	$(BIN)/python -m tools.soak --server pipewire --minutes $(MINUTES) --report tools/SOAK.md
	$(BIN)/python -m tools.soak --server pulseaudio --minutes $(MINUTES) --report tools/SOAK.md

# Chromium for the tests of the relay's page; they are skipped, and say so, where it cannot be had
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || $(SUDO) apt-get install -y -qq chromium >/dev/null \
	  || ($(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq chromium >/dev/null) \
	  || echo "no Chromium: the tests of the browser page are skipped (apt-get install chromium)"

# g++ runs the CUDA kernels' sources on the CPU in the tests; those are skipped, and say so, without it
compiler:
	@command -v g++ >/dev/null || $(SUDO) apt-get install -y -qq g++ >/dev/null \
	  || ($(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq g++ >/dev/null) \
	  || echo "no C++ compiler: the kernels are not tried on the CPU (apt-get install g++)"

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
