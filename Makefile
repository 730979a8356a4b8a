# Two commands do everything: `make run` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The unit tests, and only they: the real programs of the others would disturb one another.
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist worksteal
# Each of the processes, and dozens of programs that tests start, would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
PARTS := collector prometheus promtool alertmanager amtool llama-server tiny-model

.PHONY: run test test-servers check nightly stack parts bench bench-overhead bench-fidelity bench-headline docs clean

run: $(VENV)/.installed  ## Run the agent on this machine; needs nothing else
	OTEL_METRICS_EXPORTER=$${OTEL_METRICS_EXPORTER:-console} exec $(BIN)/otelperf agent

check: $(VENV)/.dev  ## Lint, types and unit tests: under a minute
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not end_to_end" --ignore=tests/end_to_end $(SIDE_BY_SIDE)

nightly: $(VENV)/.dev  ## The gate's promises, ten thousand examples of each: an hour or two
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest -q tests/gate $(SIDE_BY_SIDE)

test: check parts  ## Everything, with the real Collector, Prometheus and llama-server
	$(BIN)/pytest -q -m end_to_end

parts: $(VENV)/.dev  ## Build the real parts (cached in OTELPERF_PARTS)
	$(BIN)/python -m stack.parts $(PARTS)

test-servers: $(VENV)/.dev  ## The real vLLM and Triton under a production trace: half an hour, 7 GB of disk and 8 GB of memory
	$(BIN)/python -m stack.parts collector prometheus vllm triton
	$(BIN)/pytest -q tests/real_servers

stack: parts  ## Collector, Prometheus, Alertmanager, llama-server under load, and the agent, on loopback
	$(BIN)/python -m stack

bench: $(VENV)/.dev  ## Print the figures that the documentation quotes
	$(BIN)/python -m benchmarks.footprint

bench-overhead: $(VENV)/.dev  ## What a measured call costs, beside OpenTelemetry by hand (and peers: see benchmarks/overhead.py)
	$(BIN)/python -m benchmarks.overhead

bench-fidelity: $(VENV)/.dev  ## How true the gate is: dense, gated and scraped, through the real Collector into Prometheus
	$(BIN)/python -m stack.parts collector prometheus
	$(BIN)/python -m benchmarks.fidelity

bench-headline: $(VENV)/.dev  ## The real vLLM, public alert rules and boards: a 15 s scrape and otelperf beside a dense one
	$(BIN)/python -m stack.parts collector prometheus vllm
	$(BIN)/python -m benchmarks.headline

docs: $(VENV)/.dev  ## Write the generated tables in docs/
	$(BIN)/python -m tests.generated_docs
	$(BIN)/python tests/test_config.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("otelperf needs Python 3.11 or newer, this is %s: set PYTHON=..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# An editable install: the code is run as it is, and only new dependencies need a new install.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo installing into $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt | $(VENV)/.made
	@echo installing into $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[grpc]' -r requirements-dev.txt
	touch $@ $(VENV)/.installed
