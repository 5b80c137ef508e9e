"""The seal: what a staging's repository holds once staging has ended, with digests. The stages after it read this.

Invariant: a sealed repository is never changed by diskprep; each stage that uses a file checks it against the seal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, FormatTooNew, NotFound
from diskprep.store import check_name

FORMAT = "diskprep-seal"
VERSION = 1


class FileKind(StrEnum):
    """What a repository file is. Only data packs travel on disks; all other kinds go online with the job."""

    CONFIG = "config"
    KEY = "key"
    DATA = "data"
    TREE = "tree"
    INDEX = "index"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFile:
    """One file of the repository; `name` is relative to it, `sha256` is of the bytes as stored, in hex."""

    name: str
    kind: FileKind
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """All files of the repository of one staging. `snapshot` is the id of the first recovery point, in hex."""

    job_name: str
    repository_id: str
    snapshot: str
    created: str
    files: tuple[SealedFile, ...]

    def of_kind(self, *kinds: FileKind) -> tuple[SealedFile, ...]:
        return tuple(file for file in self.files if file.kind in kinds)

    @property
    def data_packs(self) -> tuple[SealedFile, ...]:
        return self.of_kind(FileKind.DATA)

    @property
    def online_files(self) -> tuple[SealedFile, ...]:
        return tuple(file for file in self.files if file.kind is not FileKind.DATA)

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the seal's canonical form; plans, journals and certificates name it."""
        document = json.dumps(_document(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(document.encode()).hexdigest()


def _document(seal: Seal) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, **asdict(seal)}


def save_seal(path: Path, seal: Seal) -> None:
    """Write the seal durably; the staging is finished from then on."""
    durable.write_json(path, {**_document(seal), "digest": seal.digest})


def load_seal(path: Path) -> Seal:
    """Read a seal and check its digest. Raises NotFound, DataDamaged or FormatTooNew."""
    try:
        document = durable.read_json(path)
    except NotFound:
        raise NotFound(
            f"the staging is not sealed: {path} does not exist", hint="give the same `diskprep stage` command again"
        ) from None
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{path} is not a seal")
    if document.pop("version", None) != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    digest = document.pop("digest", None)
    try:
        files = tuple(SealedFile(**{**entry, "kind": FileKind(entry["kind"])}) for entry in document.pop("files"))
        seal = Seal(files=files, **document)
        if seal.digest != digest:
            raise ValueError("its digest does not match")
    except (TypeError, ValueError, KeyError) as error:
        raise DataDamaged(f"{path} is damaged: {error}") from None
    for file in seal.files:
        check_name(file.name)
    return seal
