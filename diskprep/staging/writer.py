"""Backup: sources -> snapshot. An incremental backup is the same call with a base snapshot.

Write order: packs, then the index files that name them, then the snapshot. Whatever interrupts it leaves a repository
that is whole, without the new snapshot; packs that no index names yet are dead weight that a later run adopts.

Memory: the open packs (`workers` + 1 times pack size and 8 MiB), four read buffers of 16 MiB, about 300 bytes a blob of
the repository, and the listings of the directories on the path that is being worked on.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diskprep import clock
from diskprep.durable import storage_error
from diskprep.errors import DataDamaged, Interrupted
from diskprep.events import Emit, silent
from diskprep.repository import keys
from diskprep.repository.chunker import Chunker
from diskprep.repository.pack import BlobKind
from diskprep.repository.repository import DEFAULT_PACK_BYTES, Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.source import Source, check_sources, display, measure, public_path
from diskprep.staging.blobs import BlobSession
from diskprep.staging.walker import Counts, Walker
from diskprep.staging.workers import Workers
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore


def default_workers() -> int:
    """One more than the processors this process may use: one of them waits for the disk at any time."""
    return len(os.sched_getaffinity(0)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """`ignore_ctime`, `ignore_inode`: what a file may differ in from the base and still count as unchanged (size and
    modification time never). `exclude`: absolute original paths to leave out. `exclude_identities`: device and inode of
    directories to leave out by whatever path they are reached; a repository in a directory is always left out."""

    ignore_ctime: bool = False
    ignore_inode: bool = False
    exclude: frozenset[bytes] = frozenset()
    exclude_identities: frozenset[tuple[int, int]] = frozenset()
    pack_size_bytes: int = DEFAULT_PACK_BYTES
    workers: int = field(default_factory=default_workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """What a backup did. `bytes_processed`: sizes of all files in the snapshot; `bytes_added`: plaintext of the blobs
    that were new; `bytes_stored`: packs they became. `unreadable`: escaped path and reason; these are not in the
    snapshot, unless the reason says so. `changed`: files written to while they were read; stored as they were read."""

    snapshot: str
    tree: str
    files: int
    dirs: int
    files_unmodified: int
    bytes_processed: int
    bytes_added: int
    bytes_stored: int
    unreadable: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]
    skipped_sockets: int


def backup(
    repository: Repository,
    sources: Sequence[Source],
    *,
    hostname: str,
    base: Snapshot | None = None,
    options: BackupOptions | None = None,
    emit: Emit = silent,
    total_bytes: int | None = None,
) -> BackupResult:
    """Write a snapshot of `sources`, under the repository's lock.

    With `base`, files it has with the same size, times and inode are not read. Entries that cannot be read are listed
    in the result, the rest is complete. `total_bytes` is for progress; measured here when it is None and somebody
    listens. Raises Locked, StorageFull, StorageUnavailable, DataDamaged, NotFound, UsageError; KeyboardInterrupt and
    Interrupted are passed on after what was finished has become durable.
    """
    options = options or BackupOptions()
    check_sources(sources)
    if total_bytes is None and emit is not silent:
        total_bytes = measure(sources, options.exclude).size_bytes
    _allow_many_descriptors()
    repository.remove_stale_locks()  # of a run that was killed
    with repository.lock():
        started = clock.now()
        repository.reload_index()  # what was known before the lock may have been pruned since
        session = BlobSession(repository, options.pack_size_bytes)
        counts, tree = _store(repository, session, sources, base=base, options=options, emit=emit, total=total_bytes)
        snapshot = Snapshot(
            id="",
            time=started,
            tree=tree,
            paths=tuple(public_path(source.path) for source in sources),
            hostname=hostname,
            username=keys.username(),
            uid=os.getuid(),
            gid=os.getgid(),
            parent=base.id if base else None,
            excludes=tuple(sorted(public_path(path) for path in options.exclude)),
        )
        snapshot_id = repository.save_snapshot(snapshot)
    return BackupResult(
        snapshot=snapshot_id,
        tree=tree.hex(),
        files=counts.files,
        dirs=counts.dirs,
        files_unmodified=counts.files_unmodified,
        bytes_processed=counts.bytes_processed,
        bytes_added=session.added_bytes,
        bytes_stored=session.stored_bytes,
        unreadable=tuple((display(path), reason) for path, reason in sorted(counts.unreadable)),
        changed=tuple(display(path) for path in sorted(counts.changed)),
        skipped_sockets=counts.sockets,
    )


def _store(
    repository: Repository,
    session: BlobSession,
    sources: Sequence[Source],
    *,
    base: Snapshot | None,
    options: BackupOptions,
    emit: Emit,
    total: int | None,
) -> tuple[Counts, bytes]:
    """Store everything but the snapshot; return what was counted and the root tree's id."""
    chunker = Chunker(repository.polynomial)
    workers = Workers(session, options.workers)
    walker = Walker(
        session=session,
        workers=workers,
        trees=session.stream(BlobKind.TREE),
        chunker=chunker,
        load_tree=repository.load_tree,
        exclude=options.exclude,
        exclude_identities=options.exclude_identities | _own_identity(repository.store),
        ignore_ctime=options.ignore_ctime,
        ignore_inode=options.ignore_inode,
        emit=emit,
        total_bytes=total,
    )
    try:
        tree = walker.run(sources, base.tree if base else None)
        workers.finish()
        session.save_index()
    except BaseException as error:
        workers.abandon(flush=isinstance(error, (KeyboardInterrupt, Interrupted)))
        walker.close()
        raise
    if not session.has(BlobKind.TREE, tree):
        raise DataDamaged("the root tree was not stored")  # an invariant, checked before the snapshot names it
    return walker.counts, tree


def identity_of(path: Path) -> frozenset[tuple[int, int]]:
    """Device and inode of a directory, for `exclude_identities`. Raises NotFound or StorageUnavailable."""
    try:
        status = path.stat()
    except OSError as error:
        raise storage_error(error, f"look at {path}") from error
    return frozenset({(status.st_dev, status.st_ino)})


def _own_identity(store: Store) -> frozenset[tuple[int, int]]:
    return identity_of(store.root) if isinstance(store, DirectoryStore) else frozenset()


def _allow_many_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: each directory on the way and each worker takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
