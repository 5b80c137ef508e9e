"""Backup: sources -> snapshot. An incremental backup is the same call with a base snapshot.

Write order: packs, then the index files that name them, then the snapshot. Whatever interrupts it leaves a repository
that is whole, without the new snapshot; packs that no index names yet are dead weight that a later run adopts.

Memory, of all processes together: 250 to 600 MB, 40 bytes a blob of the repository and of what is new, 48 a directory,
and the listings of the directories on the path that is being worked on (400 bytes an entry).
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from diskprep import clock
from diskprep.durable import storage_error
from diskprep.errors import DataDamaged, Interrupted
from diskprep.events import Emit, silent
from diskprep.repository import blobset, keys
from diskprep.repository.chunker import Chunker
from diskprep.repository.pack import BlobKind
from diskprep.repository.repository import DEFAULT_PACK_BYTES, Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Base, parse_base
from diskprep.source import Measure, Selection, Source, check_sources, display, measure, public_path
from diskprep.staging.batch import FileRule
from diskprep.staging.blobs import BlobSession, Known, Stored, load_known
from diskprep.staging.blocks import BlockRule
from diskprep.staging.books import Books, Counts
from diskprep.staging.cutting import LateCutter
from diskprep.staging.dispatch import Dispatcher, Manpower
from diskprep.staging.walker import Walker
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore

_MEAN_CHUNK_BYTES = 5 << 18  # of long files; by the chunker's rule the mean is a fifth more
_FILES_A_DIRECTORY = 4  # fewer than most sources have


def default_manpower() -> Manpower:
    return Manpower.of_computer()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """`selection`: what of the sources is left out. `exclude`: absolute original paths to leave out too, for places
    that diskprep itself writes to; `exclude_identities`: device and inode of such directories, by whatever path they
    are reached; a repository in a directory is always left out.

    `ignore_ctime`, `ignore_inode`: what a file may differ in from the base and still count as unchanged (size and
    modification time never). `block_rule`: which files are cut in blocks of one size. `scratch`: a directory that takes
    the table of known blobs, which is in memory otherwise."""

    selection: Selection = field(default_factory=Selection)
    exclude: frozenset[bytes] = frozenset()
    exclude_identities: frozenset[tuple[int, int]] = frozenset()
    ignore_ctime: bool = False
    ignore_inode: bool = False
    block_rule: BlockRule | None = None
    pack_size_bytes: int = DEFAULT_PACK_BYTES
    manpower: Manpower = field(default_factory=default_manpower)
    scratch: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """What a backup did. `bytes_processed`: sizes of all files in the snapshot; `bytes_added`: plaintext of the blobs
    that were new; `bytes_stored`: packs they became. `unreadable`: escaped path and reason; these are not in the
    snapshot, unless the reason says so. `changed`: files written to while they were read; stored as they were read.
    `left_out`: entries that were not wanted, not counting what lies below them; `fixed_blocks`: escaped path of each
    file that was cut in blocks of one size, and why."""

    snapshot: str
    tree: str
    files: int
    dirs: int
    files_unmodified: int
    left_out: int
    bytes_processed: int
    bytes_added: int
    bytes_stored: int
    unreadable: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]
    skipped_sockets: int
    fixed_blocks: tuple[tuple[str, str], ...] = ()


def backup(
    repository: Repository,
    sources: Sequence[Source],
    *,
    hostname: str,
    base: Snapshot | None = None,
    options: BackupOptions | None = None,
    emit: Emit = silent,
    expected: Measure | None = None,
) -> BackupResult:
    """Write a snapshot of `sources`, under the repository's lock.

    With `base`, files it has with the same size, times and inode are not read. Entries that cannot be read are listed
    in the result, the rest is complete. `expected`: how much there is, for progress and tables; measured here when it
    is None. Raises Locked, StorageFull, StorageUnavailable, DataDamaged, NotFound, UsageError; KeyboardInterrupt and
    Interrupted are passed on after what was finished has become durable.
    """
    options = options or BackupOptions()
    check_sources(sources)
    expected = expected or measure(sources, options.exclude)
    _allow_many_descriptors()
    repository.remove_stale_locks()  # of a run that was killed
    with repository.lock():
        started = clock.now()
        known = load_known(  # under the lock: what was known before may have been pruned since
            repository,
            new_data=expected.files + _chunks(expected.size_bytes, options),
            new_trees=expected.files // _FILES_A_DIRECTORY,
            scratch=options.scratch,
        )
        try:
            counts, tree, stored = _store(
                repository, known, sources, base=base, options=options, emit=emit, expected=expected
            )
        finally:
            known.close()
            repository.forget_index()  # other processes have added to it
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
            excludes=(*options.selection.described(), *sorted(map(public_path, options.exclude))),
        )
        snapshot_id = repository.save_snapshot(snapshot)
    return BackupResult(
        snapshot=snapshot_id,
        tree=tree.hex(),
        files=counts.files,
        dirs=counts.dirs,
        files_unmodified=counts.files_unmodified,
        left_out=counts.left_out,
        bytes_processed=counts.bytes_processed,
        bytes_added=stored.added_bytes,
        bytes_stored=stored.stored_bytes,
        unreadable=tuple((display(path), reason) for path, reason in sorted(counts.unreadable)),
        changed=tuple(display(path) for path in sorted(counts.changed)),
        skipped_sockets=counts.sockets,
        fixed_blocks=tuple((display(path), reason) for path, reason in sorted(counts.fixed_blocks)),
    )


def _store(
    repository: Repository,
    known: Known,
    sources: Sequence[Source],
    *,
    base: Snapshot | None,
    options: BackupOptions,
    emit: Emit,
    expected: Measure,
) -> tuple[Counts, bytes, Stored]:
    """Store everything but the snapshot; return what was counted, the root tree's id, and what was stored."""

    def new_session() -> BlobSession:
        return BlobSession(repository, known, options.pack_size_bytes)

    @lru_cache(maxsize=2)  # batches of one directory come one after the other
    def load_base(tree: bytes) -> Base:
        return parse_base(repository.load_blob(BlobKind.TREE, tree, index=known.trees))

    session = new_session()
    rule = FileRule(
        session=session,
        load_base=load_base,
        ignore_ctime=options.ignore_ctime,
        ignore_inode=options.ignore_inode,
        larger_than_bytes=options.selection.larger_than_bytes,
    )
    processes = options.manpower.processes if isinstance(repository.store, DirectoryStore) else 0
    dispatcher = Dispatcher(
        manpower=Manpower(threads=options.manpower.threads, processes=processes),
        session=session,
        child_session=new_session,
        rule=rule,
    )
    walker = Walker(
        dispatcher=dispatcher,
        trees=session.stream(BlobKind.TREE),
        cutter=LateCutter(lambda: Chunker(repository.polynomial)),
        rule=rule,
        block_rule=options.block_rule,
        selection=options.selection,
        exclude=options.exclude,
        exclude_identities=options.exclude_identities | _own_identity(repository.store),
        books=Books(emit, expected.size_bytes),
    )
    try:
        tree = walker.run(sources, base.tree if base else None)
        stored = dispatcher.finish()
        session.save_index()
    except BaseException as error:
        dispatcher.abandon(flush=isinstance(error, (KeyboardInterrupt, Interrupted)))
        raise
    finally:
        walker.close()
    if not session.has(BlobKind.TREE, tree):
        raise DataDamaged("the root tree was not stored")  # an invariant, checked before the snapshot names it
    return walker.counts, tree, Stored(*map(sum, zip(stored, session.stored, strict=True)))


def table_bytes(expected: Measure, options: BackupOptions) -> int:
    """What the scratch directory must take for a backup of so much into an empty repository."""
    data = expected.files + _chunks(expected.size_bytes, options)
    return blobset.table_bytes(data) + blobset.table_bytes(expected.files // _FILES_A_DIRECTORY)


def _chunks(size_bytes: int, options: BackupOptions) -> int:
    return size_bytes // (options.block_rule.block_bytes if options.block_rule else _MEAN_CHUNK_BYTES)


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
