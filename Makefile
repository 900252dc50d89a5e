# make demo   the whole way once: build, evaluate and time CsiNet for this machine and for the Raspberry Pi
# make test   formatting, types and all tests
# Both set up .venv themselves, from the versions in requirements.lock.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint lock clean

demo: $(VENV)/demo.stamp
	$(BIN)/edgecsi demo

# One process more than the two cores it is made for: tests of devices wait for them.
test: lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

lint: $(VENV)/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and by itself, so that a CPU build that is at hand satisfies the lock.
$(VENV)/stamp: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

# The one engine the demo compares with.
$(VENV)/demo.stamp: $(VENV)/stamp requirements-peers.lock
	$(PIP) install --quiet -c requirements-peers.lock onnxruntime onnx onnxscript
	touch $@

# Take the newest versions that pyproject.toml allows, in an environment of their own.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet setuptools torch==2.13.0
	build/lock/bin/pip install --quiet ".[data,dev]"
	( sed -n 1p requirements.lock; build/lock/bin/pip freeze --all --exclude edgecsi --exclude pip | sed 's/+cpu//' ) > build/new.lock
	build/lock/bin/pip install --quiet ".[peers]"
	( sed -n 1p requirements-peers.lock; build/lock/bin/pip freeze --all --exclude edgecsi --exclude pip | sed 's/+cpu//' \
		| grep -vxFf build/new.lock ) > build/new-peers.lock
	mv build/new.lock requirements.lock
	mv build/new-peers.lock requirements-peers.lock

clean:
	rm -rf $(VENV) build dist demo
