# Every target explains itself: `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.akocore-built
KERNELS := $(wildcard src/akocore/_fast/*.pyx src/akocore/_fast/*.h)
PYTEST_ARGS ?=
SUDO_APT = apt-get -o Dpkg::Use-Pty=0 -qq -y

.DEFAULT_GOAL := help
.PHONY: fuzz help conformance docs chart nodes-up nodes-down images test-cluster bench-cluster cluster-up soak cluster venv prerequisites build test test-slow lint format typecheck bench bench-neighbours debug demo clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## create .venv with everything, editable; PYTHON=python3.12 chooses the interpreter

$(STAMP): pyproject.toml setup.py $(KERNELS)
	@$(MAKE) --no-print-directory prerequisites
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint,bench,standalone]'
	@# xds-protos brings an old copy of some of its files, and who is installed last has them.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
	  "$$($(BIN)/python -m pip freeze | grep '^opentelemetry-proto==')"
	@touch $@

# A compiler, the interpreter's headers and the venv module; as root on Debian they are fetched,
# and so is FRR with what its tests need; its own service is not, so it stays off.
prerequisites:
	@missing=; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v $(PYTHON) >/dev/null || missing="$$missing python3 python3-venv python3-dev"; \
	if command -v $(PYTHON) >/dev/null; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	  $(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    || missing="$$missing python3-dev"; \
	fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  [ -x /usr/lib/frr/bgpd ] || missing="$$missing frr"; \
	  command -v ip >/dev/null || missing="$$missing iproute2"; \
	  command -v nft >/dev/null || missing="$$missing nftables"; \
	fi; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; \
	    $(SUDO_APT) update && DEBIAN_FRONTEND=noninteractive $(SUDO_APT) install --no-install-recommends $$missing && \
	    case "$$missing" in *frr*) systemctl disable --quiet --now frr 2>/dev/null || true;; esac; \
	  else \
	    echo "missing:$$missing (install them, or run make as root on Debian)" >&2; exit 1; \
	  fi; \
	fi

build: venv ## build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: venv ## mypy --strict, and the stubs against the built kernels
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy.stubtest akocore._fast

cluster: ## build a real kube-apiserver, kubectl and etcd into a cache, once (5 minutes; needs Go)
	@if command -v go >/dev/null || [ -n "$$KUBEBUILDER_ASSETS" ]; then tests/cluster/build; \
	else echo "no Go here: the tests against an API server are skipped" >&2; fi

JOBS ?= 1
APART := $(if $(filter-out 1,$(JOBS)),-p no:benchmark --dist loadfile --no-loadscope-reorder --tx '$(JOBS)*popen//python=tests/apart')

test: lint typecheck cluster ## lint, types and the whole test suite; PYTEST_ARGS='-k shard' chooses, JOBS=3 runs three at once (root)
	$(BIN)/python -m pytest $(APART) $(PYTEST_ARGS)

test-slow: venv ## the tests that take longer, such as a million look-ups in the kernel
	$(BIN)/python -m pytest -m slow --ignore=tests/nodes $(PYTEST_ARGS)

bench: venv ## kernels, translate, encode and the whole pipeline beside their limits; asserts no time
	$(BIN)/python -m pytest benchmarks --ignore=benchmarks/cluster --benchmark-group-by=group \
	  --benchmark-columns=median,iqr,ops,rounds --benchmark-sort=min $(PYTEST_ARGS)
	$(BIN)/python benchmarks/compare

bench-neighbours: venv ## what a small application waits for its edit while another tenant edits something big; NEIGHBOURS_ARGS=--help (4 minutes)
	$(BIN)/python benchmarks/neighbours $(NEIGHBOURS_ARGS)

bench-cluster: venv cluster ## boot, one change, churn, informers over a real API server (10 minutes, root)
	$(BIN)/python -m pytest benchmarks/cluster $(PYTEST_ARGS)

fuzz: venv cluster ## objects made up from the published schemas, at their edges, through all of it: SEED=7 SECONDS=1800 (two minutes unless told, root)
	PYTHONPATH=tests unshare --net --mount sh -c 'mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; \
	  ip link set lo up; exec $(BIN)/python -m fuzz $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))'

conformance: venv cluster ## the Gateway API's own suite; CONFORMANCE_ARGS='-run-test=NAME' (10 minutes, root)
	@tests/conformance/build >/dev/null # what it fetches, it fetches before it has no network
	PYTHONPATH=tests unshare --net --mount sh -c 'mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; \
	  ip link set lo up; exec $(BIN)/python -m conformance $(CONFORMANCE_ARGS)'

cluster-up: venv cluster ## a real API server with akocore installed, until Ctrl-C (root)
	PYTHONPATH=tests $(BIN)/python -m cluster

nodes-up: ## a true cluster on this machine, NODES=1..: kubelets, pods, CoreDNS (root, Debian, Go; first time 10 minutes)
	@VERBOSE=1 tests/nodes/up

nodes-down: ## end it, and leave nothing behind but the cache
	@tests/nodes/down

images: ## both images as OCI archives into dist/images, with SBOMs; no registry needed (root, Debian)
	@deploy/images dist/images

chart: venv ## write what the Helm chart has of the code: CustomResourceDefinitions, access rules
	$(BIN)/akocore crds --chart deploy/chart

docs: venv ## write docs/reference.md: CustomResourceDefinitions and metrics, from the code
	$(BIN)/python docs/generate.py

test-cluster: venv ## on a true cluster of four nodes: images, chart, the walkthrough, faults under load (root, 10 minutes)
	$(BIN)/python -m pytest tests/nodes -m 'slow or not slow' $(PYTEST_ARGS)

soak: venv cluster ## 10,000 Ingresses, 10 edits a second for 15 minutes; SOAK_ARGS='--duration 1m --report DIR' (root)
	PYTHONPATH=tests $(BIN)/python -m cluster soak $(SOAK_ARGS)

debug: ## rebuild the kernels with bounds checks, run their tests, and build the fast ones again
	@touch setup.py
	AKOCORE_DEBUG=1 $(MAKE) --no-print-directory venv
	$(BIN)/python -m pytest tests/fast $(PYTEST_ARGS); status=$$?; \
	touch setup.py; $(MAKE) --no-print-directory venv; exit $$status

demo: venv ## the whole house on this machine, without a cluster
	$(BIN)/akocore demo

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks src/*.egg-info
	find src \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +
