"""The plan of a cleanup: what may go from the staging and the container, what stays, and why. Nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from diskprep.cleanup.looking import (
    HINT,
    KeepsDeleted,
    Outstanding,
    covered_files,
    is_the_vault,
    reason_to_keep,
    refuse_changed_vault,
    refuse_other_certificate,
    refuse_outstanding,
    refuse_repository,
    refuse_vault_without_slot,
)
from diskprep.errors import CleanupRefused
from diskprep.seal import FileKind, Seal
from diskprep.seed import Staging
from diskprep.store import Store, StoredObject
from diskprep.store.aside import Aside
from diskprep.store.directory import DirectoryStore
from diskprep.vault.certificate import Certificate


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
    """What may go and what stays. Names are relative to the staging's repository, or to the container.

    `why`: what proves that it may go. `notes`: what becomes of it then, and what was moved aside before.
    """

    job_name: str
    certificate_digest: str
    seal_digest: str
    removals: tuple[Removal, ...]
    kept: tuple[Kept, ...]
    why: str = ""
    notes: tuple[str, ...] = ()

    def count(self, place: Place) -> int:
        return sum(removal.place is place for removal in self.removals)

    def size_bytes(self, place: Place) -> int:
        return sum(removal.size_bytes for removal in self.removals if removal.place is place)

    def lines(self) -> list[str]:
        """The plan for a person."""
        gone = [f"may go from the {p}: {self.count(p)} objects, {self.size_bytes(p) / 1e6:.1f} MB" for p in Place]
        why = [f"because {self.why}"] if self.why else []
        return gone + why + list(self.notes) + [f"stays: {kept.what}: {kept.reason}" for kept in self.kept]


_ALWAYS_KEPT = (
    Kept(what="seed.json", reason="says what this staging was"),
    Kept(what="seal.json", reason="lists what the certificate covers"),
    Kept(what="plan.json, job.json", reason="say what travelled on which disk and with which job"),
    Kept(what="repairs/", reason="say the same of each further trip"),
    Kept(what="journals/", reason="say what each disk holds"),
    Kept(what="escrow/", reason="the only keys to the disks, until the disks are back and wiped"),
    Kept(what="the certificate", reason="the proof that the vault is whole"),
)

#: What of the staging's repository the recovery passwords in escrow cannot be shown without.
OPENERS = (FileKind.CONFIG, FileKind.KEY)


def plan(
    staging: Staging,
    seal: Seal,
    certificate: Certificate | None,
    *,
    container: Store | None,
    vault: Store,
    outstanding: Collection[Outstanding] = (),
) -> CleanupPlan:
    """What may go from this staging and the import container (None: the staging alone). Looks, deletes nothing.

    Raises CleanupRefused when there is no certificate, when it is not this seal's, when the vault has changed since or
    has no equal copy of it any more, or when a disk is outstanding.
    """
    if certificate is None:
        raise CleanupRefused("there is no certificate for this job", hint=HINT)
    refuse_outstanding(outstanding)
    refuse_vault_without_slot(vault)
    repository = DirectoryStore(staging.repository)
    in_place = container is not None and is_the_vault(container, vault, certificate)
    looked_into = None if in_place else container
    if looked_into is not None:
        refuse_repository(looked_into)
    made = plan_from_listings(
        seal,
        certificate,
        staging=repository.list(),
        container=() if looked_into is None else looked_into.list(),
        vault=vault.list(),
    )
    refuse_other_certificate(vault, certificate)
    notes = [*_keeping(Place.STAGING, repository)]
    if looked_into is not None:
        notes += _keeping(Place.CONTAINER, looked_into)
    if in_place:
        made = replace(made, kept=(*made.kept, Kept(what="the container", reason="it is the vault itself")))
    return replace(made, notes=tuple(notes))


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
    covered = covered_files(seal, certificate)
    refuse_changed_vault(covered, {stored.name: stored.size_bytes for stored in vault})
    openers = {file.name for file in seal.of_kind(*OPENERS)}
    removals: list[Removal] = []
    kept = list(_ALWAYS_KEPT)
    for place, listing in ((Place.STAGING, staging), (Place.CONTAINER, container)):
        for stored in sorted(listing, key=lambda stored: stored.name):
            reason = reason_to_keep(covered.get(stored.name), stored.size_bytes)
            if stored.name in openers:  # these alone are not named by their content: it may be another's
                opens = place is Place.STAGING
                reason = "opens escrow/ for who has the passphrase" if opens else "is no part of an import"
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
        why=f"certificate {certificate.digest[:12]} of {certificate.created} says of {certificate.vault}: "
        f"{certificate.method}",
    )


def _keeping(place: Place, source: Store) -> list[str]:
    """What becomes of what is deleted there, and what was moved aside."""
    notes = []
    if isinstance(source, KeepsDeleted):
        days = source.soft_delete_days()
        if days is None:
            notes.append(f"the {place}: whether deleted blobs are kept for a while cannot be told with this credential")
        elif days:
            notes.append(f"the {place}: the account keeps deleted blobs for {days} days, and charges for them")
        else:
            notes.append(f"the {place}: deleted blobs are gone at once, for the account's soft delete is off")
    if isinstance(source, DirectoryStore):
        notes += [
            f"the {place}: {len(batch.files)} objects, {batch.size_bytes / 1e6:.1f} MB, were moved aside; "
            f"`cleanup run` deletes them from {shown(batch.until)} on"
            for batch in Aside(source.root).batches()
        ]
    return notes


def shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
