# Each target makes the virtual environment it needs: nothing but Python (3.11 or newer) and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

RUN := runs/shapes-$(shell date +%Y%m%d-%H%M%S)

.PHONY: train test bench bench-compare lint sanitize clean

train: $(VENV)/installed data/shapes
	$(BIN)/fastrnn train --data data/shapes --out $(RUN) \
		--hidden 256 --wordvec 64 --epochs 12 --lr 2e-3 --lr-decay 0.9
	$(BIN)/fastrnn evaluate $(RUN)
	$(BIN)/fastrnn sample $(RUN)
	@echo "look at $(RUN)/captions.png and $(RUN)/loss.png"

data/shapes: | $(VENV)/installed
	$(BIN)/fastrnn data shapes $@

test: $(VENV)/installed
	$(BIN)/python -m pytest

# Kernels, whole tasks against PyTorch, JAX and ONNX Runtime, the machine's limits: results, tables and pictures in
# bench/results, and in README.md. Takes less than ten minutes once all is installed, on a machine with nothing else to do.
bench: $(VENV)/raced
	rm -f bench/results/kernels-*.json
	$(call time-kernels,bench/results)
	$(BIN)/python -m fastrnn.bench.report bench/results --readme README.md

# Times this checkout's kernels and names those that became slower than in SAVED, a directory with the results of
# "make bench" or an older build/bench of the same machine.
SAVED ?= bench/results
bench-compare: $(VENV)/installed
	ls "$(SAVED)"/kernels-*.json
	rm -rf build/bench
	$(call time-kernels,build/bench)
	$(BIN)/python -m fastrnn.bench.compare "$(SAVED)" build/bench

define time-kernels
mkdir -p $(1)
for run in 1 2; do $(BIN)/python -m pytest bench --quiet --benchmark-enable --benchmark-quiet --benchmark-max-time=0.015 \
	--benchmark-min-rounds=2 --benchmark-json=$(1)/kernels-$$run.json || exit 1; done
endef

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fastrnn
	$(BIN)/mypy kernels

# The kernel tests on a build that stops at the first access outside an array and at undefined behaviour. Leaks are
# not looked for: Python keeps memory on purpose.
sanitize: $(VENV)/installed
	FASTRNN_SANITIZE=1 FASTRNN_REQUIRE_CYTHON=1 $(BIN)/python setup.py --quiet build_ext --force \
		--build-temp build/sanitize --build-lib build/sanitized
	cp -r fastrnn tests bench kernels pyproject.toml build/sanitized/
	cp kernels/*.py build/sanitized/fastrnn/kernels/
	cp -r bench build/sanitized/fastrnn/
	rm -f build/sanitized/kernels/*.so
	cd build/sanitized && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest -p no:cacheprovider tests/test_kernels.py tests/test_threads.py \
		-k "not fork and not environment"

SOURCES = pyproject.toml setup.py $(wildcard kernels/*.pyx kernels/*.h)

$(VENV)/installed: $(SOURCES)
	@echo "installing fastrnn and what it needs into $(VENV), which takes a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable '.[all,test,lint]'
	touch $@

$(VENV)/raced: $(SOURCES)
	@echo "installing fastrnn and its competitors into $(VENV), which takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable '.[all,test,lint,race]' || \
		{ echo "the competitors cannot all be installed here: those that are not will be skipped"; \
		$(BIN)/pip install --quiet --editable '.[all,test,lint]'; }
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
