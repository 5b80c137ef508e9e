"""Ingest: from the container that the datacenter filled to a vault that is proven whole.

The vault is a container of its own, or the one that was filled: then the packs are proven where they are. Write order:
a data pack, then its receipt; the certificate in the vault, then its copy here; then the receipts go. A pack counts
only after it was read back FROM THE VAULT and every blob in it was opened, or, where that is asked for, when the
service's MD5 of it is that of the staging's own file, which was opened so. The same call again goes on: what is in the
vault with the right size is not copied again, and what has a receipt is not read again.

Where the vault's packs are to lie in a tier, they are moved there when they are proven: reading them costs nothing in
Hot, and more the cooler it is.

Memory: the index, and for each pack under way the pack (see `reading.in_threads`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from diskprep import clock
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskprepError, IngestIncomplete, JobConflict, NotFound
from diskprep.events import Emit, Note, Progress
from diskprep.repository.pack import verify_pack
from diskprep.repository.repository import Repository
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.store import AccessTier, BlobState, BlobStore, Store, TieredStore
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate
from diskprep.vault.check import check
from diskprep.vault.online import sealed_bytes
from diskprep.vault.reading import in_threads
from diskprep.vault.receipts import Proof, Receipt, Receipts
from diskprep.vault.repair import dropped_packs
from diskprep.vault.settings import data_tier
from diskprep.vault.withdrawal import withdraw

_STAGE = "ingest"
_NOTES_MAX = 50
_RENAMED = re.compile(r"(.+?)( \([0-9]+\))+")  # as Import/Export names what comes a second time


class Fault(StrEnum):
    MISSING = "missing"
    WRONG_SIZE = "of the wrong size"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFault:
    """A data pack that did not arrive whole. `disk`: the serial of the disk it was on; empty: on none of the plan.
    `reason`: more words, or none."""

    name: str
    size_bytes: int
    disk: str
    fault: Fault
    reason: str


TellFault = Callable[[PackFault], None]


@runtime_checkable
class _Inspecting(Protocol):
    """A store that tells when the content of an object becomes another."""

    def inspect(self, name: str) -> BlobState | None: ...


@runtime_checkable
class _Refusing(Protocol):
    """A store whose service says why it does not copy."""

    def why_not_copied(self, source: Store) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    file: SealedFile
    fault: Fault | None = None
    reason: str = ""
    receipt: Receipt | None = None


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
    originals: Store | None = None,
    tell_fault: TellFault = lambda _fault: None,
) -> Certificate:
    """Bring all data packs of the seal from `container` into `vault`, prove the vault whole, and certify it.

    `repository` is the vault's, opened; `placement` says for each data pack (object name) the serial of its disk.
    `container` may be the vault itself. `originals`: the staging's repository, to trust the service's MD5 where it is
    that of the file there; a pack whose MD5 the service does not keep, or that is gone there, is read. `tell_fault` is
    given every pack that did not arrive whole. Index files that came with the packs are left where they are: the vault
    has its own, which are proven.

    Raises IngestIncomplete when packs are missing, short or damaged, naming their counts and disks, or that the plan
    has them on none: all others are in the vault then. Raises DataDamaged when the vault's index or trees are not
    whole; Locked when somebody has the vault alone.
    """
    if repository.id != seal.repository_id:
        raise JobConflict(f"{vault.location} holds another repository than the seal describes")
    began = clock.rfc3339(clock.now())
    with repository.lock() as lock:
        receipts = Receipts(vault, repository.key, job_name, seal.digest)
        receipts.load(after=_certified(vault, job_name))
        bring = _Bring(
            container=container,
            vault=vault,
            repository=repository,
            originals=originals,
            receipts=receipts,
            arrived={stored.name: stored.size_bytes for stored in container.list("data/")},
            present={stored.name: stored.size_bytes for stored in vault.list("data/")},
            in_place=is_same(container, vault),
            tier=data_tier(repository, emit),
        )
        try:
            repository.reload_index()
            try:
                _verify_online_files(vault, repository, seal)
            except IngestIncomplete:
                _bring_the_rest(bring, seal, placement, emit, tell_fault)
                raise
            proofs = _bring_packs(bring, seal.data_packs, placement, emit, tell_fault)
            snapshots = _verify_whole(vault, repository, seal)
        except (IngestIncomplete, DataDamaged):
            if done := withdraw(repository, job_name):
                emit(Note(stage=_STAGE, text=done.words))
            raise
        trusted = sum(receipt.proof is Proof.MD5 for receipt in proofs)
        certificate = Certificate(
            job_name=job_name,
            repository_id=repository.id,
            seal_digest=seal.digest,
            snapshots=snapshots,
            vault=vault.location,
            created=clock.rfc3339(clock.now()),
            method=certificates.METHOD_MD5 if trusted else certificates.METHOD,
            files=len(seal.files),
            files_bytes=sum(file.size_bytes for file in seal.files),
            files_digest=certificates.files_digest(seal.files),
            data_packs=len(seal.data_packs),
            data_bytes=sum(file.size_bytes for file in seal.data_packs),
            began=min((receipt.time for receipt in proofs), key=clock.parse_rfc3339, default=began),
            container=vault.location if bring.in_place else container.location,
            packs_read=len(proofs) - trusted,
            packs_trusted=trusted,
        )
        lock.require_held()  # else what was proven may have been pruned since
        certificates.save(certificate, vault, certificate_path)
    receipts.delete()
    return certificate


def _certified(vault: Store, job_name: str) -> str | None:
    """When this job was certified in the vault, RFC 3339; None where it was not, or nobody can read it."""
    try:
        return certificates.load_from_vault(vault, job_name).created
    except DiskprepError:
        return None


def is_same(one: Store, other: Store) -> bool:
    """Whether two stores are one by their address, or by their directory."""
    if one.location == other.location:
        return True
    if isinstance(one, DirectoryStore) and isinstance(other, DirectoryStore):
        with contextlib.suppress(OSError):
            return one.root.samefile(other.root)
    return False


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


def _bring_the_rest(bring: _Bring, seal: Seal, placement: Mapping[str, str], emit: Emit, tell_fault: TellFault) -> None:
    """Bring what did arrive of a seed that a repair has dropped packs of, if one has. Raises IngestIncomplete then:
    such a seed is not certified, for it is not there as it was sealed."""
    gone = dropped_packs(bring.vault)
    left = sum(file.sha256 in gone for file in seal.data_packs)
    if not left:
        return
    named = bring.repository.index.packs
    _bring_packs(bring, [f for f in seal.data_packs if f.sha256 in named], placement, emit, tell_fault)
    raise IngestIncomplete(
        f"a repair has dropped {left} of the {len(seal.data_packs)} packs of {seal.job_name} from "
        f"{bring.vault.location}, so it cannot be certified; all others are in the vault",
        hint="`diskprep vault repair` says what is lost; keep the staging and the container until nothing is",
    )


def _bring_packs(
    bring: _Bring, packs: Sequence[SealedFile], placement: Mapping[str, str], emit: Emit, tell_fault: TellFault
) -> list[Receipt]:
    """Bring and prove every pack; how each was proven. Receipts are written whatever goes wrong."""
    try:
        return _brought(bring, packs, placement, emit, tell_fault)
    finally:
        with contextlib.suppress(DiskprepError):  # what went wrong first says more; unwritten ones cost time only
            bring.receipts.write()


def _brought(
    bring: _Bring, packs: Sequence[SealedFile], placement: Mapping[str, str], emit: Emit, tell_fault: TellFault
) -> list[Receipt]:
    total = sum(file.size_bytes for file in packs)
    done = 0
    proofs: list[Receipt] = []
    faults: list[PackFault] = []
    refused = ""
    for outcome in in_threads(bring.vault, bring, packs):
        file = outcome.file
        if not refused and (refused := bring.why_not_copied()):
            text = f"the service does not copy from {bring.container.location} ({refused}): packs pass through here"
            emit(Note(stage=_STAGE, text=text))
        done += file.size_bytes
        emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
        if outcome.receipt is not None:
            proofs.append(outcome.receipt)
            bring.receipts.add(file.sha256, outcome.receipt)
        if outcome.fault is not None:
            disk = placement.get(file.name, "")
            fault = PackFault(
                name=file.name,
                size_bytes=file.size_bytes,
                disk=disk,
                fault=outcome.fault,
                reason=outcome.reason.removeprefix(": "),
            )
            faults.append(fault)
            tell_fault(fault)
            if len(faults) <= _NOTES_MAX:
                text = f"{file.name} is {outcome.fault}{outcome.reason}"
                emit(Note(stage=_STAGE, text=text, item=disk or "no disk"))
    if faults:
        raise _incomplete(faults, len(packs))
    return proofs


def _incomplete(faults: list[PackFault], packs: int) -> IngestIncomplete:
    disks: dict[str, Counter[Fault]] = {}
    for fault in faults:
        disks.setdefault(f"disk {fault.disk}" if fault.disk else "on no disk of the plan", Counter())[fault.fault] += 1
    told = "; ".join(
        f"{disk}: {', '.join(f'{count} {fault}' for fault, count in sorted(counts.items()))}"
        for disk, counts in sorted(disks.items())
    )
    return IngestIncomplete(
        f"{len(faults)} of {packs} packs did not arrive whole ({told}); the others are in the vault",
        hint="bring these packs into the container again, from the staging or with another disk, then ingest again",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bring:
    """Copies one pack into the vault unless it is there, and verifies it there."""

    container: BlobStore
    vault: BlobStore
    repository: Repository
    originals: Store | None
    receipts: Receipts
    arrived: Mapping[str, int]
    present: Mapping[str, int]
    in_place: bool
    tier: AccessTier
    _renamed: Mapping[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, tuple[str, ...]] = {}
        for name in self.arrived:
            if match := _RENAMED.fullmatch(name):
                found[match[1]] = (*found.get(match[1], ()), name)
        object.__setattr__(self, "_renamed", found)
        if isinstance(self.vault, TieredStore) and self.tier is not AccessTier.DEFAULT:
            self.vault.choose_tiers(self._while_proven)

    def __call__(self, file: SealedFile) -> _Outcome:
        outcome = self._bring(file)
        if outcome.receipt is not None and isinstance(self.vault, TieredStore):
            self.vault.cool(file.name, self.tier)
        return outcome

    def _while_proven(self, name: str, _parts: Sequence[Buffer]) -> AccessTier:
        return AccessTier.HOT if name in self.arrived else AccessTier.DEFAULT

    def why_not_copied(self) -> str:
        return self.vault.why_not_copied(self.container) if isinstance(self.vault, _Refusing) else ""

    def _bring(self, file: SealedFile) -> _Outcome:
        reason = ""
        if self.present.get(file.name) == file.size_bytes:
            reason, receipt = self._verify(file)
            if receipt is not None:
                return _Outcome(file=file, receipt=receipt)
            if self._is_as_named(file):  # it is the index that is wrong: no copy is better, and it may be worse
                return _Outcome(file=file, fault=Fault.DAMAGED, reason=reason)
        for name in self._sources(file):
            with contextlib.suppress(NotFound):
                reason, receipt = self._copy(file, name)
                if receipt is not None:
                    return _Outcome(file=file, receipt=receipt)
        if reason:
            return _Outcome(file=file, fault=Fault.DAMAGED, reason=reason)
        arrived = self.arrived.get(file.name)
        if arrived in (None, file.size_bytes):  # the latter: it went while we looked
            return _Outcome(file=file, fault=Fault.MISSING)
        return _Outcome(file=file, fault=Fault.WRONG_SIZE, reason=f": {arrived} bytes, not {file.size_bytes}")

    def _sources(self, file: SealedFile) -> Iterator[str]:
        """Names under which the container may hold the pack: its own, and those of a second arrival."""
        names = (*(() if self.in_place else (file.name,)), *self._renamed.get(file.name, ()))
        return (name for name in names if self.arrived.get(name) == file.size_bytes)

    def _copy(self, file: SealedFile, name: str) -> tuple[str, Receipt | None]:
        """Bring what the container has under `name`; what is wrong with it, or the proof that nothing is."""
        try:
            if name != file.name or not self.vault.copy_from(self.container, name):
                self.vault.write(file.name, [sealed_bytes(self.container, replace(file, name=name))])
        except DataDamaged as error:
            return f": {error.message}", None
        reason, receipt = self._verify(file)
        if receipt is None and not self._is_as_named(file):
            self.vault.delete(file.name)  # a damaged pack under its name would hide that it is needed
        return reason, receipt

    def _is_as_named(self, file: SealedFile) -> bool:
        """Whether the vault's pack hashes to its name: then the pack is right, and something else is wrong."""
        try:
            return hashlib.sha256(self.vault.read(file.name)).hexdigest() == file.sha256
        except (DataDamaged, NotFound):
            return False

    def _verify(self, file: SealedFile) -> tuple[str, Receipt | None]:
        """Prove the pack that the vault has; what is wrong with it, or how it was proven."""
        state = self.vault.inspect(file.name) if isinstance(self.vault, _Inspecting) else None
        version = state.version if state is not None else ""
        receipt = self.receipts.find(file.sha256)
        if receipt is not None and version and receipt.version == version and self._may(receipt.proof):
            return "", receipt
        try:
            proof = Proof.MD5 if self._is_original(file, state) else Proof.READ
            if proof is Proof.READ:
                self._open(file, self.vault.read(file.name))
        except (DataDamaged, NotFound) as error:
            return f": {error.message}", None
        return "", Receipt(version=version, proof=proof, time=clock.rfc3339(clock.now()))

    def _may(self, proof: Proof) -> bool:
        return proof is Proof.READ or self.originals is not None

    def _is_original(self, file: SealedFile, state: BlobState | None) -> bool:
        """Whether the service has what the staging has, by size and MD5; the staging's pack is opened for it."""
        kept = state.properties.content_md5 if state is not None and state.size_bytes == file.size_bytes else None
        if self.originals is None or kept is None:
            return False
        try:
            data = self.originals.read(file.name)
            if hashlib.md5(data, usedforsecurity=False).digest() != kept:
                return False
            self._open(file, data)
        except (DataDamaged, NotFound):
            return False
        return True

    def _open(self, file: SealedFile, data: bytes) -> None:
        """Raise DataDamaged unless these are the pack's bytes, and every blob in it opens."""
        name = file.name.rpartition("/")[2]
        entry = self.repository.index.packs.get(name)
        if name != file.sha256 or entry is None:
            raise DataDamaged("no index of the vault names it")
        verify_pack(name, data, self.repository.key, entry)


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
