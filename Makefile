# Each target works as the only command after a clone, with Python 3.11 and the package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP_INSTALL := $(VENV)/bin/pip install --disable-pip-version-check -c requirements.txt

.PHONY: install install-dev demo test test-unit check serve benchmark soak fuzz chaos load page screenshots frames
install: $(STAMP)
$(STAMP): pyproject.toml requirements.txt
	@echo "Installing into $(VENV): some 2 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[cpu,demo]'
	touch $(STAMP)
# With what tests, checks and benchmarks need beside it.
install-dev: $(DEV_STAMP)
$(DEV_STAMP): $(STAMP)
	$(PIP_INSTALL) -e '.[cpu,demo,dev]'
	touch $(DEV_STAMP)
demo: install
	$(VENV)/bin/python examples/demo.py
test: install-dev
	tests/browser/install_chromium.sh
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test-unit: install-dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"
check: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
serve: install
	$(VENV)/bin/finetuner serve
# Ten minutes of mixed load; SECONDS=60 for a minute.
soak: install-dev
	$(VENV)/bin/python benchmarks/soak.py --seconds $(or $(SECONDS),600)
# Five minutes of random input to everything that reads; SECONDS=60 for a minute.
fuzz: install-dev
	FUZZ_SECONDS=$(or $(SECONDS),300) $(VENV)/bin/python -m pytest tests/test_fuzz.py
# A storm of 200 faults, a quarter of an hour; SEED=1 for another one. The volume's faults need root.
chaos: install-dev
	$(VENV)/bin/python benchmarks/chaos.py --seed $(or $(SEED),0)
# A thousand runs at once, and a listing of ten thousand.
load: install-dev
	$(VENV)/bin/python benchmarks/load_runs.py
# DATA=DIR [PREFIX=name_] adds a training on DIR's CSVs beside sentence-transformers; see benchmarks/README.md.
benchmark: install-dev
	$(VENV)/bin/python benchmarks/evaluate.py
	$(VENV)/bin/python benchmarks/bert.py
	$(if $(DATA),$(VENV)/bin/python benchmarks/train.py --data $(DATA) --prefix "$(PREFIX)" --peer sentence-transformers)
# The page from its source; needs Node. What it writes is under version control.
page:
	cd page && npm ci --no-audit --no-fund && npm run check && npm test && npm run build
# Every view at three widths, light and dark, with real runs: screenshots/.
screenshots: install-dev
	tests/browser/install_chromium.sh
	$(VENV)/bin/python tests/browser/screenshots.py
# How smooth a map of 20,000 texts is, in ms between frames.
frames: install-dev
	tests/browser/install_chromium.sh
	$(VENV)/bin/python tests/browser/frames.py
