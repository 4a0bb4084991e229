# Each target makes the virtual environment it needs: nothing but Python (3.11 or newer) and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

RUN := runs/shapes-$(shell date +%Y%m%d-%H%M%S)

.PHONY: train test lint clean

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

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fastrnn
	$(BIN)/mypy kernels

$(VENV)/installed: pyproject.toml setup.py $(wildcard kernels/*.pyx kernels/*.h)
	@echo "installing fastrnn and what it needs into $(VENV), which takes a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable '.[all,test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
