# make demo   sets up what it needs and shows the whole system on this host, a dying broker included
# make test   sets up what it needs and passes the test suite, on the built wheel;  make check  what needs no server, in a minute
# make test-all  all there is, for a day: long tests, ten runs beside a load on both cores, a minimal host, the lab, soaks
# make test-lower-bounds  the same contract with the oldest packages that pyproject.toml allows, in two minutes
# make test-deploy  makes four hosts that boot systemd, installs the fleet on them with Ansible, updates and attacks it
# make soak   breaks the whole system FAULTS times, for hours, as root; the sensors' ledgers judge; goes on where it stopped
# make bench  measures against the targets, writes build/bench.json; bench-archive: the archive; bench-outage: a day of outage;
#             bench-scale: as root, how costs grow with clients, series and servers; bench-partitioning: what
#             partitions by arrival cost; bench-alternatives: other databases and languages
# make lint   ruff and mypy alone;  make docs  writes what is generated in docs/;  make clean  removes what make made

PYTHON ?= python3
DEMO ?=
TESTS ?=
DEPLOY ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find skywave archive -name '*.py')
FAULTS ?= 1000
ROWS ?= 100000000
PACKAGES := mosquitto postgresql-15 clickhouse-server maven zookeeper systemd libfaketime prometheus

BENCH_PACKAGES = $(BIN)/pip install --quiet --disable-pip-version-check -r bench/requirements.txt

.PHONY: demo check test test-all test-busy test-minimal test-lower-bounds test-deploy soak soak-cluster bench bench-outage bench-archive bench-scale bench-partitioning bench-alternatives lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	@./tests/system-packages.sh mosquitto
	@$(BIN)/skywave demo $(DEMO)

# Two at a time: the tests wait for others more than they work.
test: lint
	@./tests/system-packages.sh $(PACKAGES)
	$(BIN)/pytest -n 2 --dist worksteal $(TESTS)

check: lint
	@./tests/system-packages.sh systemd
	$(BIN)/pytest -q tests/unit $(TESTS)

test-all: test-deploy test-minimal test-busy test-lower-bounds
	$(BIN)/pytest -m "long or not long" --all-engines
	$(MAKE) soak soak-cluster FAULTS=300

# Ten times in a row while another load wants both cores.
test-busy: lint
	@./tests/system-packages.sh $(PACKAGES) stress-ng
	stress-ng --quiet --cpu 2 --io 1 --timeout 1d & load=$$!; trap "kill $$load" EXIT; \
	for run in 1 2 3 4 5 6 7 8 9 10; do $(BIN)/pytest -q -n 2 --dist worksteal $(TESTS) || exit 1; done

test-minimal: $(VENV)/installed
	@./tests/system-packages.sh docker.io debootstrap
	PYTHONPATH=tests $(BIN)/python tests/support/minimal_host.py

# The wheel with the oldest packages that it says will do.
test-lower-bounds: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server
	$(PYTHON) -m venv $(VENV)-lower-bounds
	$(VENV)-lower-bounds/bin/pip install --quiet --disable-pip-version-check -c tests/lower-bounds.txt pytest==9.2.0 hypothesis==6.170.15 \
		"$$(echo build/wheel/*.whl)[client,server,archive]"
	$(VENV)-lower-bounds/bin/pytest -q -W default -k "old_clickhouse or postgresql or sqlite" \
		tests/contract/test_store.py tests/contract/test_outbox.py tests/archive/test_export.py tests/archive/test_engines.py \
		tests/archive/test_accounts.py \
		tests/e2e/test_delivery.py::test_every_reading_sent_is_stored_once

bench: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server
	PYTHONPATH=tests $(BIN)/python bench/run.py

bench-outage: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server
	PYTHONPATH=tests $(BIN)/python bench/day_of_outage.py

bench-scale: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server zookeeper
	$(BENCH_PACKAGES)
	PYTHONPATH=tests:bench $(BIN)/python bench/scale.py

bench-partitioning: $(VENV)/installed
	@./tests/system-packages.sh clickhouse-server
	$(BENCH_PACKAGES)
	PYTHONPATH=tests:bench $(BIN)/python bench/partitioning.py $(ROWS)

bench-alternatives: $(VENV)/installed
	@./tests/system-packages.sh postgresql-15 clickhouse-server influxdb
	$(BENCH_PACKAGES)
	PYTHONPATH=tests:bench $(BIN)/python bench/alternatives/local_database.py
	PYTHONPATH=tests:bench $(BIN)/python bench/alternatives/server_database.py
	PYTHONPATH=tests:bench $(BIN)/python bench/alternatives/hot_path/run.py

bench-archive: $(VENV)/installed
	@./tests/system-packages.sh $(PACKAGES) clickhouse-client zstd curl
	PYTHONPATH=tests $(BIN)/python bench/archive.py

soak: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server libfaketime
	PYTHONPATH=tests $(BIN)/python -m faults.soak --faults $(FAULTS) --results build/soak.json

soak-cluster: $(VENV)/installed
	@./tests/system-packages.sh mosquitto postgresql-15 clickhouse-server zookeeper maven libfaketime
	PYTHONPATH=tests $(BIN)/python -m faults.soak --cluster --faults $(FAULTS) --results build/soak-cluster.json

test-deploy: $(VENV)/deploy $(VENV)/installed
	@./tests/system-packages.sh docker.io docker-compose debootstrap maven openjdk-17-jre-headless vagrant
	cd ansible && PATH=$(CURDIR)/$(VENV)-deploy/bin:$$PATH ansible-lint --offline --profile production .
	$(VENV)-deploy/bin/python -m pytest -c tests/deploy/pytest.ini --rootdir tests/deploy tests/deploy $(DEPLOY)
	$(BIN)/pytest tests/compose $(DEPLOY) || test $$? -eq 5  # 5: DEPLOY has chosen tests of the lab alone

lint: $(VENV)/installed
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) $(VENV)-deploy $(VENV)-lower-bounds build dist

# A virtual environment with pinned packages, and Skywave in it as a wheel: what is tested is what is shipped.
$(VENV)/packages: tests/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || ./tests/system-packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/constraints.txt
	@touch $@

$(VENV)/installed: $(VENV)/packages $(SOURCES)
	@rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel . >/dev/null
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

# Ansible, Molecule and what looks into hosts: a controller's environment, apart from that of the tests.
$(VENV)/deploy: tests/deploy/constraints.txt $(VENV)/packages
	$(PYTHON) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/pip install --quiet --disable-pip-version-check -r tests/deploy/constraints.txt
	@touch $@
