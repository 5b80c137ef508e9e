"""Executing a plan: objects are deleted or moved aside, each place on its own, and the same call again goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from diskprep import clock
from diskprep.cleanup.looking import (
    HINT,
    Outstanding,
    covered_files,
    is_the_vault,
    is_where_it_came_from,
    reason_to_keep,
    refuse_changed_vault,
    refuse_other_certificate,
    refuse_other_content,
    refuse_outstanding,
    refuse_repository,
    refuse_short_grace,
    refuse_vault_without_slot,
)
from diskprep.cleanup.planning import OPENERS, CleanupPlan, Place, Removal, shown
from diskprep.errors import CleanupRefused
from diskprep.events import Emit, Note, Progress, silent
from diskprep.seal import Seal, SealedFile
from diskprep.seed import Staging
from diskprep.store import Store, StoredObject
from diskprep.store.aside import Aside
from diskprep.store.directory import DirectoryStore
from diskprep.vault import outstanding as cleanups
from diskprep.vault.certificate import Certificate

STAGE = "cleanup"


def run(
    cleanup_plan: CleanupPlan,
    staging: Staging,
    seal: Seal,
    certificate: Certificate | None,
    *,
    container: Store | None,
    vault: Store,
    places: Collection[Place] = tuple(Place),
    outstanding: Collection[Outstanding] = (),
    grace: timedelta | None = None,
    end_grace: bool = False,
    read_vault: bool = False,
    emit: Emit = silent,
) -> int:
    """Remove what the plan names at `places`, after looking at everything again; return how many bytes left them.

    The same call again goes on. With `grace` a directory's objects are moved aside for so long; what was moved aside
    earlier is deleted when its time is up, or at once with `end_grace`. `read_vault`: every covered file of the vault
    is read and hashed first. Raises CleanupRefused when there is no certificate or it is not the plan's, when a disk is
    outstanding, when the vault has no equal copy of the certificate, when a covered file is missing in the vault or is
    not what it was, when none of the vault's key files is whole, when an object to delete is not what is covered any
    more, when a place is the vault itself, or when a container does not keep deleted blobs for the `grace`; nothing was
    deleted there then.
    """
    if certificate is None:
        raise CleanupRefused("there is no certificate for this job", hint=HINT)
    if (cleanup_plan.certificate_digest, cleanup_plan.seal_digest) != (certificate.digest, seal.digest):
        raise CleanupRefused("the plan was made for another certificate or seal", hint="make the plan again")
    refuse_outstanding(outstanding)
    covered = covered_files(seal, certificate)
    sources: dict[Place, Store] = {Place.STAGING: DirectoryStore(staging.repository)}
    if container is not None:
        sources[Place.CONTAINER] = container
    # The container first: should anything be wrong with it, the staging is still there.
    order = [place for place in (Place.CONTAINER, Place.STAGING) if place in places and place in sources]
    named = {place: [removal for removal in cleanup_plan.removals if removal.place is place] for place in order}
    in_place = container is not None and is_the_vault(container, vault, certificate)
    if in_place and Place.STAGING in places and not named.get(Place.CONTAINER):
        order = [Place.STAGING]  # the container stays, as the plan says
    for place in order:
        if is_the_vault(sources[place], vault, certificate):
            raise CleanupRefused(f"{sources[place].location} is the vault itself", hint="nothing was deleted")
        if place is Place.CONTAINER:
            refuse_repository(sources[place])
        refuse_short_grace(sources[place], grace)
    if read_vault:
        refuse_other_content(covered, vault, emit)
    gone_bytes = 0
    for place in order:
        refuse_other_certificate(vault, certificate)
        refuse_changed_vault(covered, {stored.name: stored.size_bytes for stored in vault.list()})
        refuse_vault_without_slot(vault)
        gone_bytes += _empty(_Bin(sources[place], grace), vault, named[place], covered, emit)
        _delete_due(sources[place], covered, emit, end_grace=end_grace)
    if Place.STAGING in places:
        _remove_empty_directories(staging.repository)
    if container is not None and not in_place and not is_where_it_came_from(container, certificate):
        text = (
            f"the disks were not imported into {container.location}, but {certificate.container}: that one still waits"
        )
        emit(Note(stage=STAGE, text=text))
    elif in_place or container is not None or certificate.container == certificate.vault:
        _settle(sources if not in_place else {Place.STAGING: sources[Place.STAGING]}, seal, covered, certificate, vault)
    return gone_bytes


def undo(staging: Staging, container: Store | None, emit: Emit = silent) -> int:
    """Bring back what a grace period still keeps; return how many bytes. Raises JobConflict for names taken since."""
    back_bytes = 0
    for source in (DirectoryStore(staging.repository), container):
        if isinstance(source, DirectoryStore):
            aside = Aside(source.root)
            batches = aside.batches()
            for batch in batches:
                for file in batch.files:
                    aside.bring_back(file.name, batch.until)
                    back_bytes += file.size_bytes
            if batches:
                aside.tidy()
                count = sum(len(batch.files) for batch in batches)
                emit(Note(stage=STAGE, text=f"{count} objects are back in {source.location}"))
    return back_bytes


class _Bin:
    """How objects leave one place: deleted, or moved aside."""

    def __init__(self, source: Store, grace: timedelta | None) -> None:
        self.source = source
        self._aside = Aside(source.root) if grace and isinstance(source, DirectoryStore) else None
        self._until = clock.now() + (grace or timedelta())

    @property
    def done(self) -> str:
        return "deleted from" if self._aside is None else f"moved aside until {shown(self._until)} in"

    def remove(self, name: str) -> Callable[[], None]:
        """Take an object away; what is returned puts it back."""
        if self._aside is not None:
            aside, until = self._aside, self._until
            aside.move(name, until)
            return lambda: aside.bring_back(name, until)
        data = self.source.read(name)
        self.source.delete(name)
        return lambda: self.source.write(name, [data])

    def drop(self, name: str) -> None:
        """Take an object away for good, or move it aside."""
        if self._aside is not None:
            self._aside.move(name, self._until)
        else:
            self.source.delete(name)

    def close(self) -> None:
        if self._aside is not None:
            self._aside.tidy()


def _empty(box: _Bin, vault: Store, removals: list[Removal], covered: Mapping[str, SealedFile], emit: Emit) -> int:
    """Remove from one place what is still there of the removals, when all of it is what is covered."""
    source = box.source
    there = {stored.name: stored.size_bytes for stored in source.list()}
    left = [removal for removal in removals if removal.name in there]
    for removal in left:
        if reason := reason_to_keep(covered.get(removal.name), there[removal.name]):
            raise CleanupRefused(f"{removal.name} in {source.location} {reason}", hint="nothing was deleted there")
    left.sort(key=lambda removal: removal.size_bytes)
    total, done = sum(removal.size_bytes for removal in left), 0
    for removal in left:
        if removal is left[0]:
            _remove_and_look(box, vault, removal)
        else:
            box.drop(removal.name)
        done += removal.size_bytes
        emit(Progress(stage=STAGE, done_bytes=done, total_bytes=total, item=removal.place))
    if left:
        box.close()
    emit(Note(stage=STAGE, text=f"{len(left)} objects, {done} bytes, were {box.done} {source.location}"))
    return done


def _remove_and_look(box: _Bin, vault: Store, removal: Removal) -> None:
    """Remove the first object and see that the vault still has its own: one store can have many names.

    Raises CleanupRefused when it has not; the object is put back then.
    """
    put_back = box.remove(removal.name)
    there = vault.stat(removal.name)
    if there is None or there.size_bytes != removal.size_bytes:
        put_back()
        raise CleanupRefused(
            f"{box.source.location} is the vault {vault.location} under another name",
            hint="nothing was deleted; what is imported straight into the vault stays there",
        )


def _delete_due(source: Store, covered: Mapping[str, SealedFile], emit: Emit, *, end_grace: bool) -> None:
    """Delete what was moved aside and whose time is up, as far as it is covered."""
    if not isinstance(source, DirectoryStore):
        return
    aside = Aside(source.root)
    for batch in aside.batches():
        if batch.until > clock.now() and not end_grace:
            continue
        files = [file for file in batch.files if not reason_to_keep(covered.get(file.name), file.size_bytes)]
        done: list[StoredObject] = []
        aside.delete(replace(batch, files=tuple(files)), done.append)
        size_bytes = sum(file.size_bytes for file in done)
        emit(Note(stage=STAGE, text=f"{len(done)} objects, {size_bytes} bytes, that were aside are deleted"))


def _settle(
    sources: Mapping[Place, Store],
    seal: Seal,
    covered: Mapping[str, SealedFile],
    certificate: Certificate,
    vault: Store,
) -> None:
    """Tell the vault when nothing is left that this certificate lets go: then recovery points may go."""
    openers = {file.name for file in seal.of_kind(*OPENERS)}
    for source in sources.values():
        left = {stored.name for stored in source.list()} & covered.keys()
        aside = isinstance(source, DirectoryStore) and any(batch.files for batch in Aside(source.root).batches())
        if aside or left - openers:
            return
    cleanups.settle(vault, certificate)


def _remove_empty_directories(root: Path) -> None:
    for directory, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):  # not empty, or gone
            Path(directory).rmdir()
