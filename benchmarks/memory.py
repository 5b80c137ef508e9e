"""Peak memory of a backup into a repository that knows as many blobs as 10 TB in 5 million files make.

The index is synthetic: it names blobs that are not there, which does not matter, for a backup asks the index only.
What is backed up is the `tiny` set and one of the `big` set's files, so that both kinds of work are done.

    .venv/bin/python benchmarks/memory.py --blobs 12000000 --document docs/performance.md
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import data
import report
from harness import metered, roomy_tmpfs, say

from diskprep.repository.pack import BlobKind, pack_entry
from diskprep.repository.repository import Repository, create
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore

_PASSPHRASE = "a passphrase of a benchmark"
_FILE_BLOBS = 50_000  # of an index file, as a backup writes it
_PACK_BLOBS = {BlobKind.DATA: 12, BlobKind.TREE: 4000}
_TREES_PART = 24  # one blob in so many is a tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", type=int, default=12_000_000)
    parser.add_argument("--scale", type=float, default=0.25, help="of the data sets that are backed up")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--diskprep", default=str(Path(sys.executable).with_name("diskprep")))
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    room = roomy_tmpfs(options.blobs * 60 + (4 << 30)) or options.work
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as work, tempfile.TemporaryDirectory(dir=room) as place:
        source = Path(work) / "source"
        source.mkdir()
        for name in ("tiny", "big"):
            shutil.copytree(data.ensure(name, options.scale, Path(work) / "data"), source / name)
        secret = Path(work) / "passphrase"
        secret.write_text(_PASSPHRASE)
        secret.chmod(0o600)
        vault = Path(place) / "vault"
        vault.mkdir()
        repository = create(DirectoryStore(vault), Secret(_PASSPHRASE))
        for blobs in (0, options.blobs):
            _fill(repository, blobs)
            for scratch in ("", str(work)):
                command = [options.diskprep, "vault", "backup", str(source), "--vault", str(vault), "--quiet"]
                command += ["--passphrase-file", str(secret), *(["--scratch", scratch] if scratch else [])]
                reading = metered(command, environment=dict(os.environ), limit_s=3600)
                say(f"{blobs:>12,} blobs{' scratch' if scratch else ''}: {reading.pss_bytes / 1e6:.0f} MB")
                rows.append(
                    (
                        f"{blobs:,}{', table in the scratch directory' if scratch else ''}",
                        report.memory(reading.pss_bytes),
                        report.memory(reading.rss_bytes),
                        report.figure(reading.wall_s),
                    )
                )
                for point in (vault / "snapshots").iterdir():  # so that the next run has no base, and reads again
                    point.unlink()
    text = report.table(("known blobs", "all processes MB", "largest MB", "wall s"), rows)
    print(text)
    if options.document:
        report.write_section(options.document, "memory", text)
    return 0


def _fill(repository: Repository, count: int) -> None:
    """Name `count` blobs in index files."""
    for start in range(0, count, _FILE_BLOBS):
        trees = _FILE_BLOBS // _TREES_PART
        entries = []
        for kind, many in ((BlobKind.TREE, trees), (BlobKind.DATA, _FILE_BLOBS - trees)):
            for first in range(0, many, _PACK_BLOBS[kind]):
                ids = os.urandom(32 * min(_PACK_BLOBS[kind], many - first))
                blobs = [(ids[at : at + 32], 900_000, 1_500_000) for at in range(0, len(ids), 32)]
                entries.append(pack_entry(os.urandom(32).hex(), kind, blobs))
        repository.save_index(entries)
        if start // _FILE_BLOBS % 20 == 0:
            say(f"{start:>12,} of {count:,} blobs are in the index")


if __name__ == "__main__":
    raise SystemExit(main())
