# Every command prints what it does. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# TensorFlow's wheels are for Python 3.11 to 3.13: the first of these that the machine has.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PIP_INSTALL = install --quiet --disable-pip-version-check --require-hashes --no-deps
GATEWAY := gateway/.venv/bin
MODEL_BIN := model-image/.venv/bin
TOOLS := $(CURDIR)/.tools/bin
# ct runs yamllint and yamale, which the gateway's environment has.
export PATH := $(TOOLS):$(CURDIR)/$(GATEWAY):$(PATH)

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

# ---- environments: two, because tensorflow-protobuf and TensorFlow own the same package ----

%/.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11, 3.12 or 3.13 on the PATH, or make PYTHON=/path/to/python3"; exit 1; }
	@echo "==> $*/.venv" >&2
	@$(PYTHON) -m venv $*/.venv

# Runtime environments …
%/.venv/runtime.stamp: %/requirements.lock %/pyproject.toml contract/pyproject.toml | %/.venv/bin/python
	@echo "==> installing $* (requirements.lock)" >&2
	@$*/.venv/bin/python -m pip $(PIP_INSTALL) -r $*/requirements.lock
	@$*/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable contract --editable $*
	@touch $@

# The gateway's native JPEG decoder, where it can be built. Without it Pillow decodes: the same pixels, slower.
JPEG_BUILDS = printf '\#include <Python.h>\n\#include <stdio.h>\n\#include <jpeglib.h>\n' | \
  cc -E -I"$$($(GATEWAY)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" - >/dev/null 2>&1

gateway/.venv/jpeg.stamp: $(addprefix gateway/jpeg/,pyproject.toml requirements-build.lock README.md) $(wildcard gateway/jpeg/src/clothing_jpeg/*.*) | gateway/.venv/bin/python
	@if $(JPEG_BUILDS); then \
	  echo "==> installing gateway/jpeg (requirements-build.lock)" >&2; \
	  $(GATEWAY)/python -m pip $(PIP_INSTALL) -r gateway/jpeg/requirements-build.lock; \
	  $(GATEWAY)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall gateway/jpeg; \
	else \
	  echo "==> no C compiler or no headers of libjpeg-turbo (libjpeg-dev, libjpeg-turbo-devel): photos are decoded by Pillow, with the same pixels, slower" >&2; \
	fi
	@touch $@

gateway/.venv/runtime.stamp: gateway/.venv/jpeg.stamp

# … and development environments.
%/.venv/dev.stamp: %/requirements-dev.lock %/.venv/runtime.stamp
	@echo "==> installing $* (requirements-dev.lock)" >&2
	@$*/.venv/bin/python -m pip $(PIP_INSTALL) -r $*/requirements-dev.lock
	@touch $@

.PRECIOUS: %/.venv/bin/python gateway/.venv/jpeg.stamp %/.venv/runtime.stamp %/.venv/dev.stamp

.PHONY: runtime dev tools
runtime:
	@$(MAKE) --silent --jobs=2 gateway/.venv/runtime.stamp model-image/.venv/runtime.stamp
dev:
	@$(MAKE) --silent --jobs=2 gateway/.venv/dev.stamp model-image/.venv/dev.stamp
tools: ## Install all of the charts' tools into .tools/bin; targets install those that they need
	@ci/tools/install

# ---- use ----

.PHONY: demo
demo: runtime ## Run the model server and the gateway locally, classify a photo, until Ctrl-C
	@exec $(GATEWAY)/python scripts/demo.py

.PHONY: inspect
inspect: model-image/.venv/runtime.stamp ## Show a SavedModel's inputs and outputs: make inspect MODEL=path
	@test -n "$(MODEL)" || { echo "make inspect MODEL=path: names a SavedModel's folder"; exit 2; }
	@$(MODEL_BIN)/clothing-model inspect "$(MODEL)"

.PHONY: model-image
# Keras files need the development environment.
model-image: model-image/.venv/$(if $(wildcard $(MODEL)/.),runtime,dev).stamp ## Build an image of your own model: make model-image MODEL=path TAG=name:1 [LABELS=a,b PORTABLE=1 …]
	@test -n "$(MODEL)" && test -n "$(TAG)" || { echo "make model-image MODEL=path TAG=kitchen-model:1: names a Keras file or a SavedModel's folder, and the image"; exit 2; }
	@$(MODEL_BIN)/python scripts/model_image.py "$(MODEL)" --tag "$(TAG)" $(if $(PORTABLE),--portable) $(if $(TRUST),--trust) \
	  $(foreach option,NAME VERSION LABELS PREPROCESSING MEAN STD CHANNELS FIT SHORTER-SIDE RESAMPLING EXIF-ORIENTATION SCORES IMAGE-SIZE INPUT WEIGHTS WARMUP BASE BUILDER,$(if $($(subst -,_,$(option))),--$(shell echo $(option) | tr A-Z a-z)="$($(subst -,_,$(option)))"))

.PHONY: kind
kind: ## Build the images, create a Kind cluster, install the chart, print the URL
	@ci/tools/install helm
	@$(PYTHON) scripts/clusters.py --on kind up images install

# ---- checks ----

PYTEST := $(GATEWAY)/python -m pytest --timeout=60
# Most of these tests wait for processes; a file's tests share its fixtures.
PARALLEL := --numprocesses=2 --dist=loadfile
COVERAGE := $(GATEWAY)/coverage
MODEL_PYTEST := $(MODEL_BIN)/python -m pytest
.PHONY: lint lint-python lint-charts lint-workflows
lint: lint-python lint-charts lint-workflows ## Lint: format, types, charts, workflows, one version everywhere

lint-python: dev
	@echo "==> ruff, mypy"
	@$(GATEWAY)/ruff check --quiet
	@$(GATEWAY)/ruff format --check --quiet
	@$(GATEWAY)/mypy --config-file contract/pyproject.toml contract/src
	@$(GATEWAY)/mypy --config-file gateway/pyproject.toml gateway/src
	@$(MODEL_BIN)/mypy --config-file model-image/pyproject.toml model-image/src

lint-charts: dev
	@ci/tools/install helm ct helm-docs helm-unittest
	@echo "==> charts"
	@ct lint --config ci/ct.yaml
	@echo "==> what is generated: settings, READMEs, schemas and golden renders"
	@$(PYTEST) --quiet tests/chart/test_gateway_in_step.py -k generated
	@$(PYTEST) --quiet tests/chart/test_values.py -k "readme or schema"
	@$(PYTEST) --quiet tests/chart/test_contract.py -k golden

lint-workflows:
	@ci/tools/install actionlint
	@echo "==> workflows, version"
	@actionlint
	@scripts/version >/dev/null

.PHONY: quick
# Layers are marks (tests/conftest.py). Fuzzing has its own target; pytest deselects by prefix, so test_damaged_metadata_… waits for make test, too.
quick: lint-python ## After each change, under a minute: lint, types, unit tests
	@echo "==> unit tests"
	@$(PYTEST) --quiet tests/contract
	@$(PYTEST) --quiet --numprocesses=auto -m unit --deselect tests/gateway/image/test_jpeg.py::test_damaged tests/gateway
	@$(PYTEST) --quiet --numprocesses=auto -m unit tests/load
	@$(PYTEST) --quiet --numprocesses=auto -m unit tests/chart

.PHONY: coverage
# The C tracer costs 40 % of the tests' CPU time on Python 3.11: a target of its own.
coverage: gateway/.venv/dev.stamp ## Report the gateway's test coverage, processes that tests start included
	@echo "==> coverage of tests/gateway"
	@rm -rf .cache/coverage && mkdir -p .cache/coverage
	@$(COVERAGE) run -m pytest --timeout=120 --quiet tests/gateway
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) report

.PHONY: test test-gateway test-model test-charts test-integration test-load test-page
# Tests that need no chart tool first: on a bare machine those are built for minutes.
test: lint-python test-gateway test-load lint-charts lint-workflows test-charts test-model test-integration test-page ## All tests that need no cluster: lint, unit, charts, integration with TensorFlow

test-gateway: dev ## Unit and process tests of the gateway
	@echo "==> tests/contract, tests/gateway"
	@$(PYTEST) tests/contract
	@$(PYTEST) $(PARALLEL) tests/gateway

.PHONY: dataset
# The tests of each kind that make test runs on every 18th or 40th photo.
dataset: dev ## Test decoding, resizing, Keras's and torchvision's tensors, and turned photos on every photo of the dataset: a quarter of an hour
	@echo "==> every photo of the dataset: decoders, tensors, photos turned by EXIF"
	@CLOTHING_DATASET_EVERY=1 $(PYTEST) --timeout=1800 -k test_photos tests/gateway/image
	@CLOTHING_DATASET_EVERY=1 $(PYTEST) --timeout=1800 -k "test_photos or test_frameworks" tests/integration

.PHONY: fuzz
fuzz: gateway/.venv/dev.stamp ## Fuzz both JPEG decoders, the native one with sanitizers too, and the HTTP server, FUZZ_SECONDS (600) each
	@echo "==> damaged JPEGs and hostile requests, $${FUZZ_SECONDS:-600} s of each"
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} \
	  $(PYTEST) -s --timeout=$$(($${FUZZ_SECONDS:-600} + 600)) -k "fuzz or damaged" tests/gateway/test_fuzz.py tests/gateway/image/test_jpeg.py
	@if $(JPEG_BUILDS); then $(MAKE) fuzz-sanitized; else echo "==> no C compiler: not with sanitizers"; fi

# The core alone is instrumented, and Python's own malloc is off, so that each of its allocations has red zones. It is
# built from a copy: setuptools would take the objects of another build with other flags.
SANITIZED := .cache/sanitized
SANITIZERS = LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  PYTHONPATH="$(CURDIR)/$(SANITIZED)/lib$${PYTHONPATH:+:$$PYTHONPATH}"

.PHONY: fuzz-sanitized
fuzz-sanitized: gateway/.venv/dev.stamp ## Fuzz the native JPEG decoder with AddressSanitizer and UndefinedBehaviorSanitizer, FUZZ_SECONDS (600)
	@echo "==> damaged JPEGs and files at their limits, with sanitizers, $${FUZZ_SECONDS:-600} s"
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/jpeg && cp -r gateway/jpeg/{pyproject.toml,README.md,src} $(SANITIZED)/jpeg
	@CFLAGS="-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
	  $(GATEWAY)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(SANITIZED)/lib $(SANITIZED)/jpeg
	@$(SANITIZERS) $(GATEWAY)/python -c 'import clothing_jpeg; print(f"==> {clothing_jpeg.__file__}"); assert "sanitized" in clothing_jpeg.__file__'
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} $(SANITIZERS) \
	  $(PYTEST) -s --timeout=$$(($${FUZZ_SECONDS:-600} + 600)) -k "not leak" tests/gateway/image/test_jpeg.py tests/gateway/image/test_layout.py

test-model: dev ## Tests of the model package, with TensorFlow
	@echo "==> tests/model"
	@$(MODEL_PYTEST) tests/model

# The official image is for x86-64; TF_SERVING_IMAGE= (empty) asks for the portable server.
TF_SERVING_IMAGE ?= $(shell test "$$(uname -m)" = x86_64 && docker info >/dev/null 2>&1 && \
  sed -n 's/^ARG TF_SERVING_IMAGE=//p' model-image/Dockerfile)

.PHONY: conformance
conformance: model-image/.venv/dev.stamp ## Conformance with TensorFlow Serving: TF_SERVING_ADDRESS=host:port, else its image by Docker, else the portable server
	@image='$(if $(TF_SERVING_ADDRESS),,$(TF_SERVING_IMAGE))'; echo "==> conformance of $${TF_SERVING_ADDRESS:-$${image:-the portable server}}"; \
	  TF_SERVING_IMAGE="$$image" TF_SERVING_REPORT=$${TF_SERVING_REPORT:-.cache/conformance.yaml} $(MODEL_PYTEST) \
	  --confcutdir tests/model/conformance tests/model/conformance

test-charts: dev ## Charts: helm-unittest, renders, schemas
	@ci/tools/install helm helm-unittest kubeconform crds helm-docs helm4 compose promtool
	@echo "==> tests/chart"
	@$(PYTEST) $(PARALLEL) tests/chart

test-integration: dev ## Integration tests: gateway and model server as processes
	@ci/tools/install helm prometheus
	@echo "==> tests/integration"
	@$(PYTEST) --timeout=300 $(PARALLEL) tests/integration

test-load: dev ## Tests of the benchmark, and a small load on the gateway
	@echo "==> tests/load"
	@$(PYTEST) tests/load

test-page: dev ## Tests of the page in Chromium (apt-get install chromium, or similar)
	@echo "==> tests/page"
	@$(PYTEST) --timeout=300 tests/page

BENCH ?= full

.PHONY: bench
bench: gateway/.venv/runtime.stamp ## Benchmark: CPU cost of a photo, beside other servers: 20 minutes; BENCH=quick: 3, without the others; BENCH=ways: by the way of preparing; AGAINST=checkout: beside it
	@case $(BENCH) in full|quick|ways) ;; *) echo "make bench BENCH=$(BENCH): is none of full, quick, ways"; exit 2;; esac
	@$(GATEWAY)/python tests/load/bench.py $(if $(filter quick ways,$(BENCH)),--$(BENCH)) $(if $(AGAINST),--against "$(AGAINST)")

E2E ?= short

.PHONY: e2e
e2e: dev tools ## End-to-end tests on a cluster: Kind where Docker runs, else two nodes of its own; E2E=full: 3,000 requests through each scenario
	@case $(E2E) in full|short) ;; *) echo "make e2e E2E=$(E2E): is none of full, short"; exit 2;; esac
	@E2E=$(E2E) $(GATEWAY)/python scripts/clusters.py up images
	@echo "==> tests/e2e/test_ct.py, three installations in parallel"
	@$(PYTEST) --timeout=600 --numprocesses=3 --dist=worksteal tests/e2e/test_ct.py
	@echo "==> tests/e2e"
	@E2E=$(E2E) $(PYTEST) --timeout=600 --ignore=tests/e2e/test_ct.py tests/e2e

SOAK_MINUTES ?= 30

.PHONY: soak
soak: dev tools ## Soak test on that cluster, SOAK_MINUTES (30): no error, memory and file descriptors flat
	@case "$(SOAK_MINUTES)" in *[!0-9]*|""|0*) echo "make soak SOAK_MINUTES=$(SOAK_MINUTES): is no number of minutes"; exit 2;; esac
	@$(GATEWAY)/python scripts/clusters.py up images
	@echo "==> tests/e2e/soak.py, $(SOAK_MINUTES) minutes"
	@SOAK_MINUTES=$(SOAK_MINUTES) $(PYTEST) --timeout=$$(($(SOAK_MINUTES) * 60 + 900)) tests/e2e/soak.py

.PHONY: docs
docs: dev ## Regenerate the settings' tables, the charts' READMEs and schemas, and the examples' golden renders
	@ci/tools/install helm helm-docs
	@helm-docs --chart-search-root charts --sort-values-order file
	@$(GATEWAY)/python scripts/gateway_settings.py
	@$(GATEWAY)/python scripts/values_schema.py
	@$(GATEWAY)/python tests/chart/golden.py

.PHONY: pictures
pictures: dev ## Take the screenshots of the page and the dashboard again, with the demo model
	@ci/tools/install helm prometheus
	@$(GATEWAY)/python tests/page/pictures.py
	@$(GATEWAY)/python tests/load/dashboard.py docs/pictures/dashboard.png

# ---- releases: docs/releasing.md ----

.PHONY: version release-dry-run
version: dev ## Write a new version everywhere: make version NEW=0.2.0
	@test -n "$(NEW)" || { echo "make version NEW=0.2.0: names the new version; this is $$(scripts/version)"; exit 2; }
	@scripts/version "$(NEW)"
	@$(MAKE) docs

release-dry-run: dev ## Build a release without a registry, in dist/: charts, Python packages, SBOMs, notes, checksums
	@ci/tools/install helm helm4
	@scripts/release dist

.PHONY: clean
clean: ## Remove what the other commands installed
	rm -rf gateway/.venv model-image/.venv .tools .cache dist e2e-report page-report
