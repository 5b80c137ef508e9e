"""The part of a sealed repository that goes to the vault online, with the import job: everything but the data packs.

Write order: tree packs, index, snapshots, keys, config. Without its config a repository cannot be opened, by us or by
restic, so it appears whole or not at all. Keys and config before the snapshots would leave a moment in which a prune
finds trees that no snapshot needs, and deletes them. From the config on, the data packs that still travel are missed;
prune and check refuse such a repository, and the caller places the hold next.

From the config on, too, passphrases can be changed: a key file that is gone then was removed, and is never put back, or
the passphrase that it took away would open the vault again. Before the config nobody can have removed one.

The hold is refreshed by whoever works in the vault meanwhile, on several machines at once; ingestion writes the
certificate, then releases. Whoever refreshes looks for the certificate after the new hold is there, so none is left.
"""

from __future__ import annotations

import contextlib
import hashlib
from datetime import timedelta

from diskprep import clock
from diskprep.errors import (
    DataDamaged,
    JobConflict,
    Locked,
    NotSignedIn,
    StorageFull,
    StorageUnavailable,
)
from diskprep.events import Emit, Note, Progress
from diskprep.repository.lock import HOLD_LIFETIME_S
from diskprep.repository.repository import Repository
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.seed import Staging
from diskprep.store import Store, StoredObject
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.reading import in_threads

_STAGE = "publish"
_HOLD_FRESH = timedelta(days=1)
_ORDER = (FileKind.TREE, FileKind.INDEX, FileKind.SNAPSHOT, FileKind.KEY, FileKind.CONFIG)


def publish(staging: Staging, seal: Seal, vault: Store, emit: Emit) -> int:
    """Send what the vault does not have yet; return how many bytes that was. The same call again goes on.

    Raises DataDamaged when a file of the staging is not what was sealed, and JobConflict when the vault belongs to
    another repository, was certified for this job, or has changed since; then nothing was written.
    """
    local = DirectoryStore(staging.repository)
    _refuse_other_vault(local, seal, vault)
    there = {stored.name: stored for stored in vault.list()}
    total = sum(file.size_bytes for file in seal.online_files)
    done = sent = files = 0
    for kind in _ORDER:  # one kind is complete before the next begins
        wanted = _wanted(kind, seal, vault)
        for file, new in in_threads(vault, lambda f: _send(local, f, vault, there.get(f.name)), wanted):
            files += 1
            done += file.size_bytes
            sent += file.size_bytes if new else 0
            emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
    emit(
        Note(
            stage=_STAGE,
            text=f"{files} files of the small part are in the vault, {sent / 1e6:.1f} MB of them new",
        )
    )
    return sent


def sealed_bytes(store: Store, file: SealedFile) -> bytes:
    """A sealed file's content. Raises DataDamaged when it is not what was sealed, NotFound when it is gone."""
    data = store.read(file.name)
    if len(data) != file.size_bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise DataDamaged(
            f"{file.name} in {store.location} is not what was sealed",
            hint="the sealed copy is elsewhere, or this one must be made again",
        )
    return data


def place_hold(repository: Repository, job_name: str) -> None:
    """Hold the vault for a job whose disks travel, or go on holding it. Raises Locked while somebody has it alone."""
    if not any(hold.label == job_name for hold in repository.find_holds()):
        repository.hold(job_name)
    refresh_holds(repository)


def refresh_holds(repository: Repository) -> tuple[str, ...]:
    """Prolong the holds of all jobs whose disks still travel; return these jobs, sorted.

    A hold of a job that has its certificate is released: whoever ingested it was cut off before. A hold that cannot be
    prolonged now, by somebody who may only read or while somebody has the vault alone, lasts for weeks all the same.
    """
    travelling: set[str] = set()
    with contextlib.suppress(Locked, NotSignedIn, StorageFull, StorageUnavailable):
        for hold in repository.find_holds():
            travelling.add(hold.label)
            if hold.expires - clock.now() < timedelta(seconds=HOLD_LIFETIME_S) - _HOLD_FRESH:
                hold.refresh()
        for label in travelling:
            _leave_one(repository, label)
    return tuple(sorted(label for label in travelling if not is_certified(repository.store, label)))


def end_hold(repository: Repository, job_name: str) -> int:
    """Release all holds of a job, whose disks will not come any more; how many there were. Looks again, since another
    computer may just have renewed one. Raises DataDamaged, StorageUnavailable, NotSignedIn."""
    ended = 0
    while holds := [hold for hold in repository.find_holds() if hold.label == job_name]:
        for hold in holds:
            hold.release()
        ended += len(holds)
    return ended


def _leave_one(repository: Repository, job_name: str) -> None:
    """Of the holds of a job leave the one that lasts longest, or none once it has its certificate."""
    holds = sorted(
        (hold for hold in repository.find_holds() if hold.label == job_name),
        key=lambda hold: (hold.expires, hold.name),
    )
    surplus = holds if is_certified(repository.store, job_name) else holds[:-1]
    for hold in surplus:
        hold.release()


def is_certified(vault: Store, label: str) -> bool:
    """Whether the vault has a certificate of the job that a hold names."""
    try:
        return vault.stat(certificates.object_name(label)) is not None
    except DataDamaged:  # no job has this name
        return False


def _refuse_other_vault(local: Store, seal: Seal, vault: Store) -> None:
    """Refuse a vault that is somebody else's, or that has lived on since: old index files would bring back packs that
    are pruned, and the next backup would count on them."""
    hint = "name another container for this job's vault; nothing was written"
    names = {stored.name for stored in vault.list()}
    if certificates.object_name(seal.job_name) in names:
        raise JobConflict(
            f"job {seal.job_name} was ingested into {vault.location} already", hint="nothing is to be done"
        )
    config = _config(seal)
    if config.name in names:
        if vault.read(config.name) != sealed_bytes(local, config):
            raise JobConflict(f"{vault.location} already holds another repository", hint=hint)
        gone = [f.name for f in seal.of_kind(FileKind.INDEX, FileKind.SNAPSHOT) if f.name not in names]
        if gone:
            raise JobConflict(
                f"{vault.location} has changed since this staging was published: {gone[0]} is gone",
                hint="when it was lost and not pruned, `restic repair index` makes it again; nothing was written",
            )
        return
    ours = {file.name for file in seal.files}
    foreign = [n for n in sorted(names - ours) if n.startswith(("keys/", "index/", "snapshots/"))]
    if foreign:
        raise JobConflict(f"{vault.location} is being filled by somebody else: {foreign[0]}", hint=hint)


def _config(seal: Seal) -> SealedFile:
    return seal.of_kind(FileKind.CONFIG)[0]


def _wanted(kind: FileKind, seal: Seal, vault: Store) -> tuple[SealedFile, ...]:
    """What the vault must have of a kind. Looks at the key files only now: one may have been removed meanwhile."""
    files = seal.of_kind(kind)
    if kind is FileKind.KEY and vault.stat(_config(seal).name) is not None:
        return tuple(file for file in files if vault.stat(file.name) is not None)
    return files


def _send(local: Store, file: SealedFile, vault: Store, there: StoredObject | None) -> tuple[SealedFile, bool]:
    data = sealed_bytes(local, file)
    if there is not None and there.size_bytes == file.size_bytes:
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        if there.md5 == md5 if there.md5 is not None else vault.read(file.name) == data:
            return file, False
    vault.write(file.name, [data])
    return file, True
