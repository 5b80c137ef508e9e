"""A small seed on its trip: a repository that restic wrote, sealed, with a container and a vault to bring it to."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from seeds import SEED
from support import make_tree, need, run

from diskprep import durable
from diskprep.events import Event
from diskprep.repository.repository import Repository, open_repository
from diskprep.seal import FileKind, Seal, SealedFile, save_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging, save_seed
from diskprep.store import BlobStore
from diskprep.store.directory import DirectoryStore
from diskprep.vault.certificate import Certificate
from diskprep.vault.ingest import ingest
from diskprep.vault.online import publish

PASSPHRASE = "a passphrase of the tests"
JOB = "test-job"
SERIALS = ("DISK-A", "DISK-B")
_KINDS = {"keys": FileKind.KEY, "index": FileKind.INDEX, "snapshots": FileKind.SNAPSHOT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """What `stage` leaves behind, here made by restic; `opened` is its repository."""

    source: Path
    staging: Staging
    seal: Seal
    password_file: Path
    opened: Repository


def seeded(folder: Path, *, megabytes: int = 32) -> Seeded:
    """Back up a small tree with restic and seal the repository."""
    source = make_tree(folder / "source", megabytes=megabytes)
    staging = Staging(folder / "staging")
    password_file = folder / "passphrase"
    password_file.write_text(PASSPHRASE)
    restic(staging.repository, password_file, "init")
    restic(staging.repository, password_file, "backup", "--pack-size", "4", source)
    opened = open_repository(DirectoryStore(staging.repository), Secret(PASSPHRASE))
    return Seeded(source=source, staging=staging, seal=make_seal(opened), password_file=password_file, opened=opened)


def restic(
    repository: Path | str,
    password_file: Path,
    *arguments: str | Path,
    ok: bool = True,
    env: dict[str, str] | None = None,
) -> str:
    """Run Debian's restic; returns what it printed."""
    cache = {"RESTIC_CACHE_DIR": str(password_file.with_name("restic-cache"))}
    options = ("--password-file", password_file, "-r", str(repository))
    return run(need("restic"), *options, *arguments, env=cache | (env or {}), ok=ok)


def make_seal(repository: Repository) -> Seal:
    """The seal of a finished repository, packs told apart by what its index says."""
    files = []
    for stored in sorted(repository.store.list(), key=lambda stored: stored.name):
        folder, _, name = stored.name.rpartition("/")
        if folder.startswith("data/"):
            kind = FileKind.DATA if repository.index.packs[name].kind == "data" else FileKind.TREE
        else:
            kind = _KINDS.get(folder, FileKind.CONFIG)
        digest = hashlib.sha256(repository.store.read(stored.name)).hexdigest()
        files.append(SealedFile(name=stored.name, kind=kind, size_bytes=stored.size_bytes, sha256=digest))
    return Seal(
        job_name=JOB,
        repository_id=repository.id,
        snapshot=repository.snapshot().id,
        created="2026-01-01T00:00:00Z",
        files=tuple(files),
    )


@dataclass(slots=True, kw_only=True)
class Trip:
    """One test's seed between staging, container and vault."""

    folder: Path
    source: Path
    staging: Staging
    seal: Seal
    password_file: Path
    opened: Repository
    container: BlobStore
    vault: BlobStore
    events: list[Event] = field(default_factory=list)

    @property
    def placement(self) -> dict[str, str]:
        """Data packs in turn on two disks."""
        return {file.name: SERIALS[number % 2] for number, file in enumerate(self.seal.data_packs)}

    @property
    def certificate_path(self) -> Path:
        return self.folder / "certificate.json"

    def write_papers(self) -> None:
        """The staging's seed, seal and plan of two disks."""
        seed = replace(SEED, job_name=JOB, sources=(str(self.source),), repository_id=self.seal.repository_id)
        save_seed(self.staging, seed)
        save_seal(self.staging.seal_file, self.seal)
        shares = {serial: [name for name, on in self.placement.items() if on == serial] for serial in SERIALS}
        write_plan(self.staging, self.seal, shares)

    def publish(self) -> int:
        return publish(self.staging, self.seal, self.vault, self.events.append)

    def deliver(self, files: Sequence[SealedFile] | None = None) -> None:
        """What the datacenter does: data packs into the container."""
        for file in self.seal.data_packs if files is None else files:
            self.container.write(file.name, [DirectoryStore(self.staging.repository).read(file.name)])

    def open(self) -> Repository:
        """The vault's repository; the key is the staging's, so that scrypt need not run in every test."""
        return Repository(self.vault, self.opened.key, self.opened.id, self.opened.polynomial)

    def ingest(self, repository: Repository | None = None) -> Certificate:
        return ingest(
            self.container,
            self.vault,
            repository or self.open(),
            self.seal,
            self.placement,
            job_name=JOB,
            certificate_path=self.certificate_path,
            emit=self.events.append,
        )


def write_plan(staging: Staging, seal: Seal, shares: Mapping[str, Sequence[str]]) -> None:
    """A plan of these packs on these disks, by serial."""
    disks = [
        {"serial": serial, "size_bytes": 1 << 30, "packs": list(packs), "indexes": []}
        for serial, packs in shares.items()
    ]
    head = {"format": "diskprep-plan", "version": 1, "job_name": seal.job_name, "seal_digest": seal.digest}
    durable.write_json(staging.plan_file, {**head, "disks": disks})


def new_trip(start: Seeded, folder: Path, container: BlobStore, vault: BlobStore) -> Trip:
    """A trip with a staging of its own, which a test may damage."""
    staging = Staging(folder / "staging")
    shutil.copytree(start.staging.root, staging.root)
    return Trip(
        folder=folder,
        source=start.source,
        staging=staging,
        seal=start.seal,
        password_file=start.password_file,
        opened=start.opened,
        container=container,
        vault=vault,
    )


def overwrite(path: Path, data: bytes) -> None:
    """Replace the content of a read-only file."""
    path.chmod(0o600)
    path.write_bytes(data)


def flip_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def below(target: Path, source: Path) -> Path:
    """Where a restore puts what was at the absolute path `source`."""
    return target / os.fspath(source).lstrip("/")
