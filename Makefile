# Every target installs what it needs into .venv* folders, once, with $PYTHON. POSIX make; see CONTRIBUTING.md.
.POSIX:

VENV = .venv
PY = $(VENV)/bin/python
INSTALL = -m pip install --quiet --disable-pip-version-check
ARGS =
# Two processes; a file's tests stay together, as they share models.
PYTEST = -m pytest -ra -n 2 --dist loadfile
# What has to hold with every supported pair of diffusers and transformers.
MATRIX = tests/adapters tests/engine tests/jobs tests/parity tests/pipelines tests/quantization
MATRIX_VENVS = .venv-t4 .venv-t523

help:
	@echo "make demo         render a workflow in a real ComfyUI with a tiny model (COMFYUI_PATH: your ComfyUI)"
	@echo "make test         all tests; ARGS are passed to pytest"
	@echo "make test-matrix  the tests with the other supported versions of diffusers and transformers"
	@echo "make test-install the pack packed as the registry does, and installed as ComfyUI-Manager does"
	@echo "make parity       compare with the trainer's own code (AI_TOOLKIT_PATH, AI_TOOLKIT_PYTHON)"
	@echo "make bench        time ratios"
	@echo "make lint         ruff and pyright; make fix formats"
	@echo "make wheel        build dist/*.whl and try it"
	@echo "make clean        remove everything that was built or installed"

demo: $(VENV)/.pack
	$(PY) scripts/demo.py $(ARGS)

test: $(VENV)/.pack
	$(PY) $(PYTEST) $(ARGS)

test-matrix: .venv-t4/.libraries .venv-t523/.libraries
	for venv in $(MATRIX_VENVS); do $$venv/bin/python $(PYTEST) $(MATRIX) $(ARGS) || exit 1; done

test-install: $(VENV)/.pack .venv-registry/.tools .venv-comfyui/.manager
	AITK_TEST_INSTALL=1 $(PY) $(PYTEST) --dist load tests/install $(ARGS)

parity: $(VENV)/.pack
	$(PY) -m pytest -ra tests/parity $(ARGS)
	$(PY) tests/parity/harness.py table

bench: $(VENV)/.pack $(VENV)/.bench
	$(PY) bench/bench.py $(ARGS)

lint: $(VENV)/.pack $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

fix: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: $(VENV)/.libraries
	rm -rf build dist .venv-wheel
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	rm -rf build *.egg-info
	$(LAYER) .venv-wheel
	.venv-wheel/bin/python $(INSTALL) --no-deps --force-reinstall dist/*.whl
	.venv-wheel/bin/python scripts/check_wheel.py dist/*.whl

clean:
	rm -rf .venv .venv-* .cache build dist out *.egg-info .pytest_cache .ruff_cache tests/browser/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the pinned libraries have wheels for.
SUPPORTED = import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit( \
	"This is Python %s.%s; needed is 3.10 to 3.13: PYTHON=python3.12 make ..." % sys.version_info[:2])

$(VENV)/bin/python:
	@$${PYTHON:-python3} -c '$(SUPPORTED)'
	$${PYTHON:-python3} -m venv $(VENV)

# One pip run for everything, so that no file's requirements undo another's; the CUDA-only wheels after it.
$(VENV)/.libraries: $(VENV)/bin/python requirements.txt requirements/dev.txt requirements/comfy.txt \
		requirements/comfy-nodeps.txt scripts/patch_cuda_wheels.py
	$(PY) $(INSTALL) -r requirements/dev.txt -r requirements/comfy.txt
	$(PY) $(INSTALL) --no-deps -r requirements/comfy-nodeps.txt
	$(PY) scripts/patch_cuda_wheels.py
	touch $@

# The link lets pyright find the pack by its name, which an editable install hides from it.
$(VENV)/.pack: $(VENV)/.libraries pyproject.toml
	$(PY) $(INSTALL) --no-deps --editable .
	mkdir -p $(VENV)/typing
	ln -sfn ../.. $(VENV)/typing/ai_toolkit_inference
	touch $@

$(VENV)/.bench: $(VENV)/bin/python requirements/bench.txt
	$(PY) $(INSTALL) -r requirements/bench.txt
	touch $@

$(VENV)/.lint: $(VENV)/bin/python requirements/lint.txt
	$(PY) $(INSTALL) -r requirements/lint.txt
	touch $@

# A venv that sees everything of $(VENV) behind its own packages: torch is on the disk once.
LAYER = layer() { \
	$(PY) -m venv --without-pip $$1 && \
	site=`$(PY) -c 'import site; print(site.getsitepackages()[0])'` && \
	own=`$$1/bin/python -c 'import site; print(site.getsitepackages()[0])'` && \
	echo "import site; site.addsitedir('$$site')" > "$$own/below.pth"; }; layer

.venv-t4/.libraries: $(VENV)/.pack requirements/transformers-4.57.txt
	$(LAYER) .venv-t4
	.venv-t4/bin/python $(INSTALL) -r requirements/transformers-4.57.txt
	touch $@

.venv-t523/.libraries: $(VENV)/.pack requirements/transformers-5.23.txt
	$(LAYER) .venv-t523
	.venv-t523/bin/python $(INSTALL) -r requirements/transformers-5.23.txt
	touch $@

.venv-registry/.tools: requirements/registry.txt
	$${PYTHON:-python3} -m venv .venv-registry
	.venv-registry/bin/python $(INSTALL) -r requirements/registry.txt
	touch $@

# A ComfyUI as its users have it: what ComfyUI and its Manager require, and nothing of this pack's.
.venv-comfyui/.manager: $(VENV)/.libraries requirements/manager.txt scripts/link_packages.py
	rm -rf .venv-comfyui
	$(PY) -m venv --without-pip .venv-comfyui
	$(PY) scripts/link_packages.py .venv-comfyui pip setuptools torch requirements/comfy.txt requirements/comfy-nodeps.txt
	.venv-comfyui/bin/python $(INSTALL) -r requirements/manager.txt
	touch $@
