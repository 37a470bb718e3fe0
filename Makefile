# A front for noxfile.py, which has the tasks and their environments. Python >= 3.11 with pip is all
# that must be there.
PYTHON ?= python3
RUNNER := .nox/runner
NOX := $(RUNNER)/bin/nox
RUN = $(NOX) --session

TASKS := test quick coverage check format bench bench-overhead mutants sdk-suite ray floors audit package pythons docs
.PHONY: help demo matrix simulate chaos dashboards gateways gateways-ray gateways-skyrl cookbooks cookbooks-fireworks debian-packages fuzz fuzz-bytes changelog clean $(TASKS)

help:
	@echo "make demo    see the guard at work, in half a minute"
	@echo "make test    run the tests"
	@echo "make quick   run the tests that need neither sockets nor processes"
	@echo "make coverage  see that the tests take every branch of the guard's heart"
	@echo "make mutants  break the heart in some 6,300 ways, and see that the tests notice"
	@echo "make check   style, spelling, types, contracts of import, typed public names"
	@echo "make format  let ruff fix what it can"
	@echo "make bench   measure, beside peers; about a quarter of an hour"
	@echo "make bench-overhead  see whether an untouched request has become twice as dear as recorded"
	@echo "make simulate  run the guard through N=100000 hostile schedules in virtual time"
	@echo "make chaos   soak the real SDK and the guard over real sockets for MINUTES=30"
	@echo "make matrix  run the end-to-end tests against every release of the SDKs"
	@echo "make pythons  run the quick tests on each Python that is found"
	@echo "make package  build the wheel, and test it without the checkout"
	@echo "make sdk-suite  run the SDK's own tests with the guard installed"
	@echo "make ray     run the tests with actors of a real local Ray"
	@echo "make dashboards  look at guarded runs in Phoenix, MLflow and Prometheus, with a real browser"
	@echo "make gateways  train through real nginx, Envoy, Traefik, Caddy and HAProxy that lack a route"
	@echo "make gateways-ray  the same through a real Ray Serve, which is large"
	@echo "make gateways-skyrl  through nginx and Traefik to SkyRL's real server, which is large"
	@echo "make cookbooks  train by recipes of others before SkyRL's real server, which is large"
	@echo "make cookbooks-fireworks  Fireworks' cookbook, of which FIREWORKS_COOKBOOK is a checkout"
	@echo "make fuzz    try as many strange inputs as N=10000 says on each property"
	@echo "make fuzz-bytes  feed bytes to what reads them, led by coverage, SECONDS=60 for each"
	@echo "make floors  run the tests with the oldest dependencies that pyproject.toml allows"
	@echo "make audit   ask for known holes in the oldest and the newest dependencies"
	@echo "make docs    build the documentation site into site/, offline"
	@echo "make changelog  see what the next release would say"
	@echo "make clean   remove what these targets made"

$(TASKS): $(NOX)
	@$(RUN) $@

demo: $(NOX)
	@$(RUN) demo

# `make matrix ONLY="0.38.0 1.2.30"` tries these releases alone.
matrix: $(NOX)
	@$(RUN) matrix $(if $(ONLY),-- $(ONLY:%=--only=%))

# Prints the seed of a schedule that fails, and how to replay it.
N ?= 100000
simulate: $(NOX)
	@$(RUN) simulate -- --n $(N)

# Prints its seed. `make chaos DOCS=docs/reliability.md` writes the figures there.
MINUTES ?= 30
chaos: $(NOX)
	@$(RUN) chaos -- --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(DOCS),--docs $(DOCS))

dashboards: DEBIAN := chromium:chromium prometheus:prometheus promtool:prometheus
dashboards: $(NOX) debian-packages
	@$(RUN) dashboards

# `make gateways DOCS=docs/gateways.md` writes the table there.
gateways: DEBIAN := haproxy:haproxy
gateways: $(NOX) debian-packages
	@$(RUN) gateways $(if $(DOCS),-- $(abspath $(DOCS)))

gateways-ray: $(NOX)
	@$(RUN) gateways-ray $(if $(DOCS),-- $(abspath $(DOCS)))

gateways-skyrl: $(NOX)
	@$(RUN) gateways-skyrl $(if $(DOCS),-- $(abspath $(DOCS)))

# `make cookbooks DOCS=docs/cookbooks.md` writes the table there.
cookbooks: $(NOX)
	@$(RUN) cookbooks $(if $(DOCS),-- $(abspath $(DOCS)))

cookbooks-fireworks: $(NOX)
	@$(RUN) cookbooks-fireworks $(if $(DOCS),-- $(abspath $(DOCS)))

# Programs, each with the package that it is in.
debian-packages:
	@for program in $(DEBIAN); do \
	  PATH=$$PATH:/usr/sbin command -v $${program%:*} > /dev/null || \
	    missing="$$missing $${program#*:}"; \
	done; \
	[ -z "$$missing" ] || if [ $$(id -u) = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; \
	else \
	  echo "As root, on Debian: apt-get install$$missing" >&2; \
	  exit 1; \
	fi

# With VERSION=1.2.3 it writes CHANGELOG.md; without, it shows what would be written.
changelog: $(NOX)
	@$(RUN) changelog $(if $(VERSION),-- --yes --version $(VERSION))

# Other inputs each time; one that fails is printed with the line that repeats it.
fuzz: N = 10000
fuzz: $(NOX)
	@$(RUN) fuzz -- $(N)

SECONDS ?= 60
fuzz-bytes: $(NOX)
	@$(RUN) fuzz-bytes -- $(SECONDS)

clean:
	rm -rf .nox site .matrix mutants .coverage .mypy_cache .ruff_cache .pytest_cache dist

$(NOX):
	@echo "Making the task runner's environment, $(RUNNER) ..."
	@$(PYTHON) -m venv --clear $(RUNNER)
	@$(RUNNER)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check 'nox>=2025.5.1'
	@touch $@
