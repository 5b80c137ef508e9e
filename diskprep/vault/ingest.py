"""Ingest: from the container that the datacenter filled to a vault that is proven whole.

Write order: data packs, then the certificate in the vault, then its copy here. A pack counts only after it was read
back FROM THE VAULT and every blob in it was opened. The same call again goes on: what is in the vault with the right
size is not copied again, but is read and verified again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from diskprep import clock
from diskprep.errors import DataDamaged, DiskprepError, IngestIncomplete, JobConflict, NotFound
from diskprep.events import Emit, Note, Progress
from diskprep.repository.pack import verify_pack
from diskprep.repository.repository import Repository
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.store import BlobStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate
from diskprep.vault.check import check
from diskprep.vault.online import sealed_bytes
from diskprep.vault.reading import in_threads

_STAGE = "ingest"
_NOTES_MAX = 50


class Fault(StrEnum):
    MISSING = "missing"
    WRONG_SIZE = "of the wrong size"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    file: SealedFile
    fault: Fault | None = None
    reason: str = ""


def ingest(
    container: BlobStore,
    vault: BlobStore,
    repository: Repository,
    seal: Seal,
    placement: Mapping[str, str],
    *,
    job_name: str,
    certificate_path: Path | None,
    emit: Emit,
) -> Certificate:
    """Bring all data packs of the seal from `container` into `vault`, prove the vault whole, and certify it.

    `repository` is the vault's, opened; `placement` says for each data pack (object name) the serial of its disk.
    Index files that came with the packs are left where they are: the vault has its own, which are proven.
    Raises IngestIncomplete when packs are missing, short or damaged, naming their counts and disks, or that the plan
    has them on none: all others are in the vault then. Raises DataDamaged when the vault's index or trees are not
    whole.
    """
    if repository.id != seal.repository_id:
        raise JobConflict(f"{vault.location} holds another repository than the seal describes")
    with repository.lock():
        repository.reload_index()
        _verify_online_files(vault, repository, seal)
        arrived = {stored.name: stored.size_bytes for stored in container.list("data/")}
        present = {stored.name: stored.size_bytes for stored in vault.list("data/")}
        _bring_packs(_Bring(container, vault, repository, arrived, present), seal, placement, emit)
        snapshots = _verify_whole(vault, repository, seal)
    certificate = Certificate(
        job_name=job_name,
        repository_id=repository.id,
        seal_digest=seal.digest,
        snapshots=snapshots,
        vault=vault.location,
        created=clock.rfc3339(clock.now()),
        method=certificates.METHOD,
        files=len(seal.files),
        files_bytes=sum(file.size_bytes for file in seal.files),
        files_digest=certificates.files_digest(seal.files),
        data_packs=len(seal.data_packs),
        data_bytes=sum(file.size_bytes for file in seal.data_packs),
    )
    certificates.save(certificate, vault, certificate_path)
    return certificate


def _verify_whole(vault: BlobStore, repository: Repository, seal: Seal) -> tuple[str, ...]:
    """The ids of the vault's snapshots; every pack that its index names is there, and every snapshot is resolvable."""
    result = check(repository)
    problems = list(result.problems)
    if seal.snapshot not in result.snapshots:
        problems.append(f"the sealed snapshot {seal.snapshot} is not in the vault")
    if problems:
        raise DataDamaged(
            f"{vault.location} is not whole: {'; '.join(problems[:3])}{_more(len(problems) - 3)}",
            hint="`diskprep vault check` tells more; nothing was certified, and the staging is to be kept",
        )
    return result.snapshots


def _bring_packs(bring: _Bring, seal: Seal, placement: Mapping[str, str], emit: Emit) -> None:
    total = sum(file.size_bytes for file in seal.data_packs)
    done = 0
    faults: list[_Outcome] = []
    for outcome in in_threads(bring.vault, bring, seal.data_packs):
        done += outcome.file.size_bytes
        emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
        if outcome.fault is not None:
            faults.append(outcome)
            if len(faults) <= _NOTES_MAX:
                disk = placement.get(outcome.file.name, "no disk")
                text = f"{outcome.file.name} is {outcome.fault}{outcome.reason}"
                emit(Note(stage=_STAGE, text=text, item=disk))
    if faults:
        raise _incomplete(faults, len(seal.data_packs), placement)


def _incomplete(faults: list[_Outcome], packs: int, placement: Mapping[str, str]) -> IngestIncomplete:
    disks: dict[str, Counter[Fault]] = {}
    for outcome in faults:
        assert outcome.fault is not None
        serial = placement.get(outcome.file.name)
        disks.setdefault(f"disk {serial}" if serial else "on no disk of the plan", Counter())[outcome.fault] += 1
    told = "; ".join(
        f"{disk}: {', '.join(f'{count} {fault}' for fault, count in sorted(counts.items()))}"
        for disk, counts in sorted(disks.items())
    )
    return IngestIncomplete(
        f"{len(faults)} of {packs} packs did not arrive whole ({told}); the others are in the vault",
        hint="bring these packs into the container again, from the staging or with another disk, then ingest again",
    )


@dataclass(frozen=True, slots=True)
class _Bring:
    """Copies one pack into the vault unless it is there, and verifies it there."""

    container: BlobStore
    vault: BlobStore
    repository: Repository
    arrived: Mapping[str, int]
    present: Mapping[str, int]

    def __call__(self, file: SealedFile) -> _Outcome:
        if self.present.get(file.name) == file.size_bytes:
            reason = self._verify(file)
            if not reason:
                return _Outcome(file=file)
            if self.arrived.get(file.name) != file.size_bytes:
                return _Outcome(file=file, fault=Fault.DAMAGED, reason=reason)
        return self._copy(file)

    def _copy(self, file: SealedFile) -> _Outcome:
        arrived = self.arrived.get(file.name)
        if arrived is None:
            return _Outcome(file=file, fault=Fault.MISSING)
        if arrived != file.size_bytes:
            return _Outcome(file=file, fault=Fault.WRONG_SIZE, reason=f": {arrived} bytes, not {file.size_bytes}")
        try:
            if not self.vault.copy_from(self.container, file.name):
                self.vault.write(file.name, [sealed_bytes(self.container, file)])
            reason = self._verify(file)
            if reason and not self._is_as_named(file):
                self.vault.delete(file.name)  # a damaged pack under its name would hide that it is needed
        except NotFound:
            return _Outcome(file=file, fault=Fault.MISSING)
        except DataDamaged as error:
            reason = f": {error.message}"
        return _Outcome(file=file, fault=Fault.DAMAGED if reason else None, reason=reason)

    def _is_as_named(self, file: SealedFile) -> bool:
        """Whether the vault's pack hashes to its name: then the pack is right, and something else is wrong."""
        return hashlib.sha256(self.vault.read(file.name)).hexdigest() == file.sha256

    def _verify(self, file: SealedFile) -> str:
        """Read the pack from the vault and open every blob; what is wrong with it, or nothing."""
        name = file.name.rpartition("/")[2]
        entry = self.repository.index.packs.get(name)
        try:
            if name != file.sha256 or entry is None:
                raise DataDamaged("no index of the vault names it")
            verify_pack(name, self.vault.read(file.name), self.repository.key, entry)
        except (DataDamaged, NotFound) as error:
            return f": {error.message}"
        return ""


def _verify_online_files(vault: BlobStore, repository: Repository, seal: Seal) -> None:
    """Read what went online; it must be what was sealed, tree packs must open, and an index must name every pack.

    Not so the key files: passphrases may have been changed since. One of the vault's own opened it a moment ago.
    """

    def verify(file: SealedFile) -> str:
        try:
            data = sealed_bytes(vault, file)
            if file.kind is FileKind.TREE:
                name = file.name.rpartition("/")[2]
                verify_pack(name, data, repository.key, repository.index.packs.get(name))
        except DiskprepError as error:
            return error.message
        return ""

    files = [file for file in seal.online_files if file.kind is not FileKind.KEY]
    wrong = [reason for reason in in_threads(vault, verify, files) if reason]
    named = repository.index.packs
    wrong += [f"no index names {f.name}" for f in seal.data_packs if f.name.rpartition("/")[2] not in named]
    if wrong:
        raise IngestIncomplete(
            f"{len(wrong)} files that went online are not whole in the vault: {wrong[0]}{_more(len(wrong) - 1)}",
            hint="publish the staging again, then ingest again; nothing was changed",
        )


def _more(count: int) -> str:
    return f", and {count} more" if count > 0 else ""
