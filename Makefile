PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test pytest lint docs results results-quick claims figures bench build browser clean

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

claims: $(VENV)/.installed
	$(BIN)/python -m lab.claims

figures: $(VENV)/.installed
	$(BIN)/python -m lab.figures

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# The site of docs/, into build/site. A warning or a dead link is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m lab.site

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

test: lint pytest

pytest: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# The sdist and, made of it, the wheel, into dist/. Then the wheel is tried without extras in an empty environment, away
# from the clone.
build:
	rm -rf dist
	@set -e; unset PYTHONPATH; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/tools"; $(PYTHON) -m venv "$$tmp/empty"; \
	"$$tmp/tools/bin/python" -m pip install --quiet --disable-pip-version-check build; \
	"$$tmp/tools/bin/python" -m build --outdir dist . >"$$tmp/log" 2>&1 || { cat "$$tmp/log"; exit 1; }; \
	{ tar tzf dist/*.tar.gz; $(PYTHON) -m zipfile -l dist/*.whl; } >"$$tmp/files"; \
	if grep -E '(^|/)(lab|benchmarks|examples|tests)/' "$$tmp/files"; then echo "that is no part of retain"; exit 1; fi; \
	"$$tmp/empty/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl; \
	cd "$$tmp"; empty/bin/retain --version; \
	empty/bin/retain train stack --budget 10steps --out run --quiet; \
	empty/bin/python -c "import retain; print(retain.__file__); print(retain.load('run').init_memory(1).shape)"
	@ls dist

# Chromium for the tests of the pages: as root on Debian it is installed. Without it they are skipped, unless
# RETAIN_REQUIRE_BROWSER is set.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	else false; fi >/dev/null || \
		echo "no Chromium: the tests of the pages are skipped"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
