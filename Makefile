# Two commands for a newcomer: `make rehearse` and `make test`. Each does its own set-up.
.POSIX:
.PHONY: rehearse test check fast bench bench-disks bench-vault bench-ingest bench-browse vm clean

rehearse:
	@.ci/prepare run
	@.venv/bin/diskprep rehearse $(if $(SOURCE),"$(SOURCE)")

# Everything that must always hold: format, lint, types, import contract, and all tests but the slow sweeps. Two files of
# tests at once.
test: check
	@.venv/bin/python -m pytest -m 'not slow' -p no:cacheprovider -n 2 --dist loadfile

check:
	@.ci/prepare test
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/mypy benchmarks/*.py

# The quick half, while working: no root, no other people's tools.
fast:
	@.ci/prepare test
	@.venv/bin/python -m pytest -q -m 'not slow and not root' --ignore=tests/readers --ignore=tests/e2e

# diskprep beside restic, borg and others on the same data; a whole run is kept in docs/performance.md.
# To try it: make bench BENCH='--scale 0.02 --runs 1'
bench:
	@.ci/prepare bench
	@.venv/bin/python benchmarks/staging.py --document docs/performance.md $(BENCH)

# Disks: diskprep beside dd, raw reads and copying by hand; `by hand` needs root and FUSE.
bench-disks:
	@.ci/prepare bench
	@.venv/bin/python benchmarks/disks.py --document docs/performance.md $(BENCH)

# The vault: restoring and checking beside restic.
bench-vault:
	@.ci/prepare bench
	@.venv/bin/python benchmarks/vault.py --document docs/performance.md $(BENCH)

# The vault: taking a seed in, beside plain copying between containers of a blob server on this computer.
bench-ingest:
	@.ci/prepare bench
	@.venv/bin/python benchmarks/ingest.py --document docs/performance.md $(BENCH)

# The vault: mounting and listing a million files beside restic, once; needs root and FUSE.
bench-browse:
	@.ci/prepare bench
	@.venv/bin/python benchmarks/browse.py --runs 1 --document docs/performance.md $(BENCH)

# Our wheel on a Debian with SATA disks in a virtual machine, whose own kernel then opens what was prepared. Takes
# minutes, and root once for what it boots; not a part of `make test`. docs/reference/copy-computer.md tells more.
vm:
	@.ci/prepare test
	@.ci/vm-image
	@.venv/bin/python -m pytest -x -v -p no:cacheprovider --durations=0 tests/vm

clean:
	rm -rf .venv .cache dist build
