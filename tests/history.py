"""A vault with a history: recovery points that restic made of a source that changed between them."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from support import make_tree
from trip import PASSPHRASE, restic

from diskprep.repository.repository import Repository, open_repository
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """`folder` holds the vault and its passphrase; `source` is as the last point has it."""

    folder: Path
    source: Path
    opened: Repository

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    @property
    def password_file(self) -> Path:
        return self.folder / "passphrase"

    @property
    def repository(self) -> Repository:
        """Read anew; the key is known, so that scrypt need not run in every test."""
        return Repository(
            DirectoryStore(self.vault), self.opened.key, self.opened.id, self.opened.polynomial, slot=self.opened.slot
        )

    @property
    def ids(self) -> list[str]:
        return [snapshot.id for snapshot in self.repository.snapshots()]

    def copy(self, folder: Path) -> History:
        """The same vault elsewhere, for a test that damages it."""
        shutil.copytree(self.vault, folder / "vault")
        shutil.copy(self.password_file, folder)
        return replace(self, folder=folder)


def make_history(folder: Path) -> History:
    """Five points: a first one; added, changed, removed and retyped entries; a twin of a folder; another host with the
    same files; a folder moved."""
    source, rng = make_tree(folder / "source", megabytes=6), random.Random(11)
    vault, password_file = folder / "vault", folder / "passphrase"
    password_file.write_text(PASSPHRASE)
    restic(vault, password_file, "init")
    opened = open_repository(DirectoryStore(vault), Secret(PASSPHRASE))

    def backup(day: int, *options: str) -> None:
        restic(vault, password_file, "backup", "--time", f"2026-02-{day:02d} 12:00:00", *options, source)

    (source / "twins").mkdir()
    (source / "twins/one").mkdir()
    for number in range(3):
        (source / "twins/one" / f"twin-{number}").write_bytes(rng.randbytes(50_000))
    backup(1, "--host", "one")

    (source / "added.bin").write_bytes(rng.randbytes(300_000))
    (source / "new folder/inner").mkdir(parents=True)
    (source / "new folder/inner/copy").write_bytes((source / "folder 0/deep/random-0.bin").read_bytes())
    (source / "folder 1/small-1").write_bytes(b"changed content\n")
    (source / "folder 1/small-2").unlink()
    (source / "folder 1/small-3").chmod(0o600)
    (source / "folder 1/small-4").unlink()
    (source / "folder 1/small-4").symlink_to("small-5")
    (source / "odd/fifo").unlink()
    (source / "empty folder/now used").write_bytes(b"")
    backup(2, "--host", "one", "--tag", "daily", "--tag", "kept")

    (source / "twins/two").mkdir()
    for path in sorted((source / "twins/one").iterdir()):
        (source / "twins/two" / path.name).hardlink_to(path)
    for name in ("one", "two"):
        os.utime(source / "twins" / name, ns=(1_700_000_000_000_000_000,) * 2)
    backup(3, "--host", "one")

    backup(4, "--host", "two", "--tag", "other")

    (source / "folder 2").rename(source / "folder 9")
    (source / "added.bin").write_bytes((source / "added.bin").read_bytes()[:200_000] + rng.randbytes(100))
    backup(5, "--host", "one", "--tag", "daily")
    return History(folder=folder, source=source, opened=opened)
