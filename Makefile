# Each target makes the virtual environment it needs: nothing but Python (3.11 or newer) and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

RUN := runs/shapes-$(shell date +%Y%m%d-%H%M%S)

.PHONY: train test lint sanitize bench-compare clean

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

# Times this checkout's kernels three times into build/bench and names those that became slower than in SAVED, a copy
# of that directory from an earlier checkout.
bench-compare: $(VENV)/installed
	$(if $(SAVED),test -d "$(SAVED)")
	mkdir -p build/bench
	for run in 1 2 3; do $(BIN)/python -m pytest bench --quiet --benchmark-enable --benchmark-quiet \
		--benchmark-max-time=0.05 --benchmark-min-rounds=3 --benchmark-json=build/bench/$$run.json || exit 1; done
	$(if $(SAVED),$(BIN)/python -m bench.compare "$(SAVED)" build/bench,@echo "SAVED=a copy of build/bench compares")

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
	rm -f build/sanitized/kernels/*.so
	cd build/sanitized && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest -p no:cacheprovider tests/test_kernels.py tests/test_threads.py \
		-k "not fork and not environment"

$(VENV)/installed: pyproject.toml setup.py $(wildcard kernels/*.pyx kernels/*.h)
	@echo "installing fastrnn and what it needs into $(VENV), which takes a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable '.[all,test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
