"""Cleanup: what may go once a vault is certified, as a value, and its execution.

Invariants: nothing is deleted that the certificate does not cover; right before deleting, everything is looked at
again: both copies of the certificate, every covered file in the vault with its size, and each object that is to go.
Key files are not covered, for passphrases may be changed: the vault must have a whole one, whichever it is.
What is small and cannot be made again (journals, escrow, seed, seal, certificate) is never deleted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from diskprep.errors import CleanupRefused, DiskprepError
from diskprep.events import Emit, Note, Progress, silent
from diskprep.repository.slots import has_whole_slot
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.seed import Staging
from diskprep.store import Store, StoredObject
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate

_STAGE = "cleanup"
_HINT = "nothing was deleted; `diskprep vault ingest` proves the vault and writes a new certificate"


class Place(StrEnum):
    """Where something may go from; each is emptied on its own."""

    STAGING = "staging"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    place: Place
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that stays, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPlan:
    """What may go and what stays. Names are relative to the staging's repository, or to the container."""

    job_name: str
    certificate_digest: str
    seal_digest: str
    removals: tuple[Removal, ...]
    kept: tuple[Kept, ...]

    def size_bytes(self, place: Place) -> int:
        return sum(removal.size_bytes for removal in self.removals if removal.place is place)

    def lines(self) -> list[str]:
        """The plan for a person."""
        counts = {place: sum(removal.place is place for removal in self.removals) for place in Place}
        gone = [f"may go from the {p}: {n} objects, {self.size_bytes(p) / 1e6:.1f} MB" for p, n in counts.items()]
        return gone + [f"stays: {kept.what}: {kept.reason}" for kept in self.kept]


_ALWAYS_KEPT = (
    Kept(what="seed.json", reason="says what this staging was"),
    Kept(what="seal.json", reason="lists what the certificate covers"),
    Kept(what="plan.json, job.json", reason="say what travelled on which disk and with which job"),
    Kept(what="journals/", reason="say what each disk holds"),
    Kept(what="escrow/", reason="the only keys to the disks, until the disks are back and wiped"),
    Kept(what="the certificate", reason="the proof that the vault is whole"),
)

#: What of the staging's repository the recovery passwords in escrow cannot be shown without.
_OPENERS = (FileKind.CONFIG, FileKind.KEY)


def plan(
    staging: Staging, seal: Seal, certificate: Certificate | None, *, container: Store, vault: Store
) -> CleanupPlan:
    """What may go from this staging and the import container. Looks, deletes nothing.

    Raises CleanupRefused when there is no certificate, when it is not this seal's, or when the vault has changed since.
    """
    if certificate is None:
        raise CleanupRefused("there is no certificate for this job", hint=_HINT)
    _refuse_vault_without_slot(vault)
    repository = DirectoryStore(staging.repository)
    return plan_from_listings(
        seal, certificate, staging=repository.list(), container=container.list(), vault=vault.list()
    )


def plan_from_listings(
    seal: Seal,
    certificate: Certificate,
    *,
    staging: Iterable[StoredObject],
    container: Iterable[StoredObject],
    vault: Iterable[StoredObject],
) -> CleanupPlan:
    """What may go, from the listings of the staging's repository, the import container and the vault.

    Raises CleanupRefused when the certificate is not this seal's, or the vault has changed since. Listings do not say
    whether the vault's key files are whole: `plan` and `run` look.
    """
    covered = _covered(seal, certificate)
    _refuse_changed_vault(covered, {stored.name: stored.size_bytes for stored in vault})
    openers = {file.name for file in seal.of_kind(*_OPENERS)}
    removals: list[Removal] = []
    kept = list(_ALWAYS_KEPT)
    for place, listing in ((Place.STAGING, staging), (Place.CONTAINER, container)):
        for stored in sorted(listing, key=lambda stored: stored.name):
            reason = _reason_to_keep(covered.get(stored.name), stored.size_bytes)
            if place is Place.STAGING and stored.name in openers:
                reason = "opens escrow/ for who has the passphrase"
            if reason:
                kept.append(Kept(what=f"{place}: {stored.name}", reason=reason))
            else:
                removals.append(Removal(place=place, name=stored.name, size_bytes=stored.size_bytes))
    return CleanupPlan(
        job_name=seal.job_name,
        certificate_digest=certificate.digest,
        seal_digest=seal.digest,
        removals=tuple(removals),
        kept=tuple(kept),
    )


def run(
    cleanup_plan: CleanupPlan,
    staging: Staging,
    seal: Seal,
    certificate: Certificate | None,
    *,
    container: Store,
    vault: Store,
    places: Collection[Place] = tuple(Place),
    emit: Emit = silent,
) -> int:
    """Delete what the plan names at `places`, after looking at everything again; return how many bytes went.

    The same call again goes on. Raises CleanupRefused when there is no certificate or it is not the plan's, when the
    vault has no equal copy of it, when a covered file is missing in the vault or has another size, when none of the
    vault's key files is whole, when an object to delete is not what is covered any more, or when a place is the vault
    itself; nothing was deleted there then.
    """
    if certificate is None:
        raise CleanupRefused("there is no certificate for this job", hint=_HINT)
    if (cleanup_plan.certificate_digest, cleanup_plan.seal_digest) != (certificate.digest, seal.digest):
        raise CleanupRefused("the plan was made for another certificate or seal", hint="make the plan again")
    covered = _covered(seal, certificate)
    sources: dict[Place, Store] = {Place.STAGING: DirectoryStore(staging.repository), Place.CONTAINER: container}
    # The container first: should anything be wrong with it, the staging is still there.
    order = [place for place in (Place.CONTAINER, Place.STAGING) if place in places]
    for place in order:
        _refuse_the_vault_itself(sources[place], vault, certificate)
    gone_bytes = 0
    for place in order:
        _refuse_other_certificate(vault, certificate)
        _refuse_changed_vault(covered, {stored.name: stored.size_bytes for stored in vault.list()})
        _refuse_vault_without_slot(vault)
        removals = [removal for removal in cleanup_plan.removals if removal.place is place]
        gone_bytes += _empty(sources[place], vault, removals, covered, emit)
    if Place.STAGING in places:
        _remove_empty_directories(staging.repository)
    return gone_bytes


def _empty(source: Store, vault: Store, removals: list[Removal], covered: Mapping[str, SealedFile], emit: Emit) -> int:
    """Delete from one place what is still there of the removals, when all of it is what is covered."""
    there = {stored.name: stored.size_bytes for stored in source.list()}
    left = [removal for removal in removals if removal.name in there]
    for removal in left:
        if reason := _reason_to_keep(covered.get(removal.name), there[removal.name]):
            raise CleanupRefused(f"{removal.name} in {source.location} {reason}", hint="nothing was deleted there")
    left.sort(key=lambda removal: removal.size_bytes)
    total, done = sum(removal.size_bytes for removal in left), 0
    for removal in left:
        if removal is left[0]:
            _delete_and_look(source, vault, removal)
        else:
            source.delete(removal.name)
        done += removal.size_bytes
        emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total, item=removal.place))
    emit(Note(stage=_STAGE, text=f"{len(left)} objects, {done} bytes, were deleted from {source.location}"))
    return done


def _delete_and_look(source: Store, vault: Store, removal: Removal) -> None:
    """Delete the first object and see that the vault still has its own: one store can have many names.

    Raises CleanupRefused when it has not; the object is put back then.
    """
    data = source.read(removal.name)
    source.delete(removal.name)
    there = vault.stat(removal.name)
    if there is None or there.size_bytes != removal.size_bytes:
        source.write(removal.name, [data])
        raise CleanupRefused(
            f"{source.location} is the vault {vault.location} under another name",
            hint="nothing was deleted; what is imported straight into the vault stays there",
        )


def _covered(seal: Seal, certificate: Certificate) -> Mapping[str, SealedFile]:
    """The files that the certificate covers: all but the key files, which may be others by now."""
    claimed = (certificate.job_name, certificate.repository_id, certificate.seal_digest, certificate.files_digest)
    actual = (seal.job_name, seal.repository_id, seal.digest, certificates.files_digest(seal.files))
    if claimed != actual or seal.snapshot not in certificate.snapshots:
        raise CleanupRefused("the certificate does not cover what this staging sealed", hint=_HINT)
    return {file.name: file for file in seal.files if file.kind is not FileKind.KEY}


def _reason_to_keep(covered: SealedFile | None, size_bytes: int) -> str:
    if covered is None:
        return "is not covered by the certificate"
    if covered.size_bytes != size_bytes:
        return f"has {size_bytes} bytes, not the {covered.size_bytes} that the certificate covers"
    return ""


def _refuse_changed_vault(covered: Mapping[str, SealedFile], vault: Mapping[str, int]) -> None:
    changed = [name for name, file in covered.items() if vault.get(name) != file.size_bytes]
    if changed:
        raise CleanupRefused(
            f"the vault has changed since it was certified: {len(changed)} files are missing or have another size, "
            f"{changed[0]} among them",
            hint=_HINT,
        )


def _refuse_vault_without_slot(vault: Store) -> None:
    """What nobody can open is no copy, whole as it may be."""
    if not has_whole_slot(vault):
        raise CleanupRefused(
            "the vault has changed since it was certified: none of its key files is whole",
            hint="nothing was deleted; `diskprep vault passphrase change` writes a whole one if the vault still opens, "
            "else copy one from the staging's repository/keys",
        )


def _refuse_other_certificate(vault: Store, certificate: Certificate) -> None:
    try:
        kept = certificates.load_from_vault(vault, certificate.job_name)
    except DiskprepError as error:
        raise CleanupRefused(
            f"the vault's copy of the certificate cannot be read: {error.message}", hint=_HINT
        ) from None
    if kept.digest != certificate.digest:
        raise CleanupRefused("the vault holds another certificate for this job", hint=_HINT)


def _refuse_the_vault_itself(source: Store, vault: Store, certificate: Certificate) -> None:
    same = source.location == vault.location or source.stat(certificates.object_name(certificate.job_name)) is not None
    if isinstance(source, DirectoryStore) and isinstance(vault, DirectoryStore):
        with contextlib.suppress(OSError):
            same = same or source.root.samefile(vault.root)
    if same:
        raise CleanupRefused(f"{source.location} is the vault itself", hint="nothing was deleted")


def _remove_empty_directories(root: Path) -> None:
    for directory, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):  # not empty, or gone
            Path(directory).rmdir()
