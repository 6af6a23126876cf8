PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test results results-quick figures bench lint browser clean

# The environment is rebuilt when what it is made from changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "retain needs Python 3.10 or newer; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,tensorboard]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m lab.demo

results: $(VENV)/.installed
	$(BIN)/python -m lab.results

results-quick: $(VENV)/.installed
	$(BIN)/python -m lab.results --quick

figures: $(VENV)/.installed
	$(BIN)/python -m lab.figures

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Chromium for the tests of the report page: as root on Debian it is installed. Without it they are skipped, unless
# RETAIN_REQUIRE_BROWSER is set.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	else false; fi >/dev/null || \
		echo "no Chromium: the tests of the report page are skipped"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
