# Every target makes the virtual environment it needs; Python >= 3.11 is all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: help demo test coverage mutants check format bench simulate chaos matrix sdk-suite ray \
  dashboards debian-packages fuzz fuzz-bytes floors audit clean

help:
	@echo "make demo    see the guard at work, in half a minute"
	@echo "make test    run the tests"
	@echo "make coverage  see that the tests take every branch of the guard's heart"
	@echo "make mutants  break the heart in some fifteen hundred ways, and see that the tests notice"
	@echo "make check   ruff and mypy --strict"
	@echo "make format  let ruff fix what it can"
	@echo "make bench   measure, beside peers; about ten minutes"
	@echo "make simulate  run the guard through N=100000 hostile schedules in virtual time"
	@echo "make chaos   soak the real SDK and the guard over real sockets for MINUTES=30"
	@echo "make matrix  run the end-to-end tests against every release of the SDKs"
	@echo "make sdk-suite  run the SDK's own tests with the guard installed"
	@echo "make ray     run the tests with actors of a real local Ray"
	@echo "make dashboards  look at guarded runs in Phoenix, MLflow and Prometheus, with a real browser"
	@echo "make fuzz    try as many strange inputs as N=10000 says on each property"
	@echo "make fuzz-bytes  feed bytes to what reads them, led by coverage, SECONDS=60 for each"
	@echo "make floors  run the tests with the oldest dependencies that pyproject.toml allows"
	@echo "make audit   ask for known holes in the oldest and the newest dependencies"
	@echo "make clean   remove what these targets made"

demo: $(INSTALLED)
	$(BIN)/tinker-guard demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2

# The heart, by the tests in virtual time; those left out end processes, or trace by themselves.
coverage: $(INSTALLED)
	$(BIN)/coverage run -m pytest -k 'not interpreter_ends and not fault_in_any_function' \
	  $(patsubst %, tests/test_%.py, control_plane failing_safe line peek probing recovery route \
	  single_flight transport verdict waiting warmup)
	$(BIN)/coverage report

# Goes on where it was stopped, and tries again what survived; `make clean` forgets all of it.
mutants: .venv-mutants/.installed
	.venv-mutants/bin/python scripts/mutants.py

# Other operators or settings give the mutants other numbers, by which results are remembered.
.venv-mutants/.installed: pyproject.toml scripts/mutants.py
	rm -rf mutants
	$(PYTHON) -m venv --clear .venv-mutants
	.venv-mutants/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test]' mutmut==3.8.1
	@touch $@

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks --markdown --docs docs

# Prints the seed of a schedule that fails, and how to replay it.
N ?= 100000
simulate: $(INSTALLED)
	$(BIN)/python -m simulation --n $(N)

# Prints its seed. `make chaos DOCS=docs/reliability.md` writes the figures there.
MINUTES ?= 30
chaos: $(INSTALLED)
	$(BIN)/python -m chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(DOCS),--docs $(DOCS))

# Every release of the SDKs, each in an environment of its own. Takes a while.
matrix:
	$(PYTHON) scripts/matrix.py

# The tests that the SDK ships in its own wheel, with the guard installed.
sdk-suite:
	$(PYTHON) -m venv --clear .venv-sdk
	.venv-sdk/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable . tinker==0.38.0 pytest pytest-asyncio
	cd .venv-sdk && touch empty.ini && PYTHONPATH=../scripts bin/python -m pytest \
	  -c empty.ini -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function \
	  -p install_guard_plugin --import-mode=importlib -p no:cacheprovider -q \
	  $$(find lib -path '*/site-packages/tinker/*' -name '*_test.py')

# Ray is large, so it is no part of the extra `test`.
ray:
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test]' ray==2.60.0
	.venv-ray/bin/python -m pytest tests/test_ray.py

# Real backends, each in an environment of its own because their dependencies clash.
dashboards: debian-packages
	$(PYTHON) -m venv --clear \
	  .venv-dashboards .venv-dashboards/phoenix .venv-dashboards/mlflow
	.venv-dashboards/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test]' opentelemetry-distro opentelemetry-exporter-prometheus playwright \
	  'grafana-foundation-sdk==1769699379!11.6.0'
	.venv-dashboards/phoenix/bin/python -m pip install --quiet --disable-pip-version-check \
	  arize-phoenix==20.26.1
	.venv-dashboards/mlflow/bin/python -m pip install --quiet --disable-pip-version-check \
	  mlflow==3.17.2
	TINKER_GUARD_SCREENSHOTS=docs .venv-dashboards/bin/python -m pytest tests/dashboards

debian-packages:
	@for program in chromium prometheus promtool; do \
	  command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	[ -z "$$missing" ] || if [ $$(id -u) = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium prometheus; \
	else \
	  echo "Not installed:$$missing. As root, on Debian: apt-get install chromium prometheus" >&2; \
	  exit 1; \
	fi

# Other inputs each time; one that fails is printed with the line that repeats it.
fuzz: N = 10000
fuzz: $(INSTALLED)
	TINKER_GUARD_FUZZ=$(N) $(BIN)/python -m pytest tests/test_fuzz.py --timeout 0

# Coverage of what is compiled in: atheris is no part of the extra `test`.
SECONDS ?= 60
fuzz-bytes:
	$(PYTHON) -m venv --clear .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[cli]' 'atheris>=3.0'
	for target in not_found retry_after control_plane route report; do \
	  .venv-fuzz/bin/python scripts/fuzz_bytes.py $$target -max_total_time=$(SECONDS) -print_final_stats=0 \
	    || exit 1; \
	done

# Needs PyPI's own interface, which tells of known holes: a mirror that lacks it makes this fail.
audit:
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit uv
	for resolution in lowest-direct highest; do \
	  .venv-audit/bin/uv pip compile --quiet --all-extras --resolution $$resolution \
	    --output-file .venv-audit/$$resolution.txt pyproject.toml && \
	  .venv-audit/bin/pip-audit --strict --no-deps --disable-pip \
	    --requirement .venv-audit/$$resolution.txt || exit 1; \
	done

# Twice: the SDK's own dependencies raise some bounds, so the core is also tried without it.
floors:
	$(PYTHON) -m venv --clear .venv-floors
	.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-floors/bin/uv pip install --quiet --python .venv-floors/bin/python \
	  --resolution lowest-direct --editable . \
	  'opentelemetry-sdk>=1.27' 'pytest>=8.2' 'pytest-timeout>=2.3'
	.venv-floors/bin/python -m pytest $(addprefix --ignore tests/, \
	  gateway test_chaos.py test_cli.py test_clients.py test_doctor.py test_end_to_end.py test_failing_safe.py \
	  test_fuzz.py test_http2.py test_proxies.py test_report.py test_sampling.py test_security.py \
	  test_sockets.py test_state_machines.py test_benchmarks.py)
	.venv-floors/bin/uv pip install --quiet --python .venv-floors/bin/python \
	  --resolution lowest-direct --editable '.[test]'
	.venv-floors/bin/python -m pytest

clean:
	rm -rf $(VENV) .venv-floors .venv-sdk .venv-ray .venv-dashboards .venv-fuzz .venv-audit \
	  .venv-mutants .matrix mutants .coverage .mypy_cache .ruff_cache .pytest_cache dist

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
