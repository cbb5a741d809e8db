# `make train` and `make test` work in a fresh clone and install everything into .venv.
# Pass arguments in ARGS: make train ARGS="--models tafe --sample 1.0", make test ARGS="tests/data -k schema".

# The first that runs, of the Pythons that the package supports: a version manager's stand-in may not.
PYTHON ?= $(shell for v in 11 12 13 10; do python3.$$v -c '' 2>/dev/null && echo python3.$$v && exit; done; echo python3)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
INSTALLED := .venv/installed
MERMAID := 11.17.2

.DEFAULT_GOAL := help
.PHONY: help env train compare test lint bench-quick bench-report docs verify versions kernels wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: $(INSTALLED) ## create .venv with all packages pinned, once

train: env ## train the papers' models on the Complete Journey funnel; results go to runs/
	@PATH="$(CURDIR)/$(BIN):$$PATH" torchx run -s local_cwd mtl.train $(ARGS)

compare: env ## compare every model and ablation: five seeds, one report; takes hours, resumes where it stopped
	@$(BIN)/torchrec-mtl compare $(ARGS)

test: env ## run all tests, including those in docstrings, in three processes of one thread
	@OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

lint: env ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-quick: env ## try the benchmarks out, small; four minutes
	@$(BIN)/python -m benchmarks.quick $(ARGS)

verify: lint bench-quick ## before a release: every test, also against other libraries, on Spark and Slurm where they are, with fifty kills, a hundred draws, every pipeline and a service under load; hours
	@TORCHREC_MTL_VERIFY=1 TORCHREC_MTL_PEERS=1 TORCHREC_MTL_KILLS=50 TORCHREC_MTL_SLURM=1 TORCHREC_MTL_SPARK=1 TORCHREC_MTL_DRAWS=100 TORCHREC_MTL_PIPELINES=all TORCHREC_MTL_LOAD=60 $(MAKE) test

versions: env ## run tests with every supported PyTorch, TorchRec and Python, each in an environment of its own; hours
	@$(BIN)/python -m tests.versions $(ARGS)

bench-report: env ## draw benchmarks/results/report.html from the CSV files there
	@$(BIN)/python -m benchmarks.report

docs: .venv/docs-installed ## build the docs as a site in build/docs, with every link checked; a minute
	@$(BIN)/python -m docs.site.pages
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs/site build/docs-source build/docs
	@echo 'docs: open build/docs/index.html'

kernels: env ## build the C++ kernels for this CPU and, where there is nvcc, those for GPUs, for the sizes of docs/gpu.md; minutes
	@$(BIN)/python -W ignore -m torchrec_mtl.ops.build
	@if command -v nvcc > /dev/null; then \
		$(BIN)/python -W ignore -m torchrec_mtl.ops.inducing_attention.cuda.build --dim 18 --fields 20 --types float32 && \
		$(BIN)/python -W ignore -m torchrec_mtl.ops.inducing_attention.cuda.build --dim 32 --fields 26 --types bfloat16; \
	else \
		echo 'kernels: there is no nvcc, so none are built for GPUs, where Triton takes their place; CUDA 13 has it' >&2; \
	fi

wheel: env ## build what is installed from in dist/: the wheel, with kernels for every kind of x86-64 processor, and fbgemm's
	@$(BIN)/python -W ignore -m torchrec_mtl.ops.build --prebuilt
	@$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist . ./requirements/shim/fbgemm-gpu

clean: ## remove .venv and the tools' caches; data and runs stay
	rm -rf .venv build dist torchrec_mtl/ops/prebuilt *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# Written last, so an interrupted installation starts again from an empty .venv.
# torch comes first: only torch and the installers are searched for on PyTorch's index, which has the CPU build.
$(INSTALLED): Makefile setup.py $(wildcard requirements/*.txt requirements/shim/*/setup.py)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'env: Python 3.10 to 3.13 is needed; if it is not `$(PYTHON)`, run: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'env: creating .venv ($(PYTHON))'
	@$(PYTHON) -m venv --clear .venv
	@echo 'env: installing torch, CPU build (200 MB)'
	@$(BIN)/pip install -q --retries 2 --no-deps --extra-index-url $(TORCH_CPU_INDEX) \
		-c requirements/common.txt pip setuptools torch
	@echo 'env: installing the other packages (a minute or two)'
	@$(BIN)/pip install -q --no-build-isolation -r requirements/cpu.txt -r requirements/dev.txt -e .
	@$(BIN)/pip check
	@echo 'env: building the attention kernels for this CPU (half a minute)'
	@$(BIN)/python -W ignore -m torchrec_mtl.ops.build || echo 'env: BPCM and TAFE will run without them, slower' >&2
	@touch $@

# Sphinx reads the docstrings by importing the package, so it is in .venv too. npm brings the script that draws charts.
.venv/docs-installed: $(INSTALLED) requirements/docs.txt
	@$(BIN)/pip install -q -r requirements/docs.txt
	@{ npm pack --silent --pack-destination .venv @mermaid-js/tiny@$(MERMAID) > /dev/null && \
		tar -xzOf .venv/mermaid-js-tiny-$(MERMAID).tgz package/dist/mermaid.tiny.js > .venv/mermaid.js; } || \
		{ echo 'docs: npm did not bring the script that draws charts, so they are shown as text' >&2; : > .venv/mermaid.js; }
	@touch $@
