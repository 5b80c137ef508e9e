"""Staging: the initial full backup, written into a directory of its own and sealed.

The same command again goes on after any interruption, and does nothing once the staging is sealed.

Write order: key and config of the repository; escrow key; seed.json; packs, index files, snapshot; choices; seal.json.
So a staging without seed.json has promised nothing and is begun anew; one without a snapshot is backed up again, which
finds what is already stored; one with a snapshot is backed up again on that base, which reads changed files only and
tells once more what cannot be read. One process at a time (flock on `stage.lock`).
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from diskprep import clock, durable, escrow
from diskprep.errors import DataDamaged, JobConflict, StorageFull, StorageUnavailable, UsageError
from diskprep.events import Emit, Note, silent
from diskprep.repository.chunker import preload
from diskprep.repository.keys import DEFAULT_COST, ScryptCost
from diskprep.repository.pack import BlobKind, PackEntry, PackSummary, object_name, verify_pack
from diskprep.repository.repository import Repository, create, hash_names, is_object_name, open_repository
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging, load_seed, save_seed
from diskprep.source import Measure, Source, check_sources, display, measure
from diskprep.staging import choices
from diskprep.staging.writer import BackupOptions, BackupResult, backup, identity_of
from diskprep.store import StoredObject
from diskprep.store.directory import DirectoryStore

_STAGE = "stage"
_LOCK_FILE = "stage.lock"
_ESCROW_KEY = "key"
_RECENT_PACKS = 64  # read back after a run that was cut off: a gigabyte
_MIN_FREE_PART = 0.05  # of the source: less room than this never suffices, however well it compresses
_REPOSITORY_DIRECTORIES = ("data", "index", "keys", "locks", "snapshots")
_KINDS = {"config": FileKind.CONFIG, "keys": FileKind.KEY, "index": FileKind.INDEX, "snapshots": FileKind.SNAPSHOT}
_PACK_KINDS = {BlobKind.DATA: FileKind.DATA, BlobKind.TREE: FileKind.TREE}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(BackupResult):
    """What staging did. `already_sealed`: nothing was left to do; then the counts are zero and `bytes_stored` is what
    the repository holds."""

    seal: Seal
    already_sealed: bool


def stage(
    staging: Staging,
    sources: Sequence[Source],
    *,
    passphrase: Secret[str],
    job_name: str,
    storage_account: str,
    container: str,
    subscription_id: str,
    resource_group: str,
    location: str,
    hostname: str,
    options: BackupOptions | None = None,
    expected: Measure | None = None,
    emit: Emit = silent,
    cost: ScryptCost = DEFAULT_COST,
) -> StageResult:
    """Back `sources` up into `staging` and seal it. `expected`: how much there is, when the caller has looked, and has
    found that there is room for it.

    Raises JobConflict when the staging belongs to another trip, Locked when somebody else is at it, StorageFull,
    WrongPassphrase, and what `backup` raises.
    """
    if not durable.exists(staging.seal_file):
        check_sources(sources)
    wanted = Seed(
        job_name=job_name,
        storage_account=storage_account,
        container=container,
        subscription_id=subscription_id,
        resource_group=resource_group,
        location=location,
        hostname=hostname,
        sources=tuple(display(source.path) for source in sources),
        repository_id="",
        escrow_public_key="0" * 64,
        created=clock.rfc3339(clock.now()),
    )
    durable.make_directory(staging.root)
    with durable.only_process(
        staging.root / _LOCK_FILE,
        busy=f"another process is staging into {staging.root}",
        hint="wait until it has ended, or stop it",
    ):
        if staging.seed_file.exists():
            _refuse_other_trip(load_seed(staging), wanted, staging)
        if staging.seal_file.exists():
            seal = load_seal(staging.seal_file)
            emit(Note(stage=_STAGE, text=f"{staging.root} is already sealed; nothing to do"))
            return _result_of(seal)
        with ThreadPoolExecutor(max_workers=1) as aside:  # stretching the passphrase leaves this thread idle
            opening = aside.submit(_begin, staging, wanted, passphrase, cost)
            if expected is None or expected.has_long_files:
                preload()
            repository = opening.result()
        _tidy(staging, repository, emit)
        options = own_exclusions(staging, sources, options or BackupOptions())
        if expected is None:
            expected = measure(sources, options.exclude)
            _refuse_hopeless(staging, expected)
        earlier = repository.snapshots()
        result = backup(
            repository,
            sources,
            hostname=hostname,
            base=earlier[-1] if earlier else None,
            options=options,
            emit=emit,
            expected=expected,
        )
        choices.save(staging, repository.key, options)
        seal = _seal(staging, repository, result.snapshot)
        shared = {item.name: getattr(result, item.name) for item in fields(result)}
        return StageResult(**shared, seal=seal, already_sealed=False)


def open_staged(staging: Staging, passphrase: Secret[str]) -> Repository:
    """The repository of a staging. Raises NotFound, WrongPassphrase, DataDamaged; JobConflict when it is not the one
    the seed names."""
    seed = load_seed(staging)
    repository = open_repository(DirectoryStore(staging.repository), passphrase)
    if repository.id != seed.repository_id:
        raise JobConflict(f"the repository in {staging.repository} is not the one of job {seed.job_name}")
    return repository


def unlock_escrow(staging: Staging, repository: Repository) -> Secret[bytes]:
    """The seed's private key, which opens the disks' recovery passwords. Raises NotFound or DataDamaged."""
    path = staging.escrow / _ESCROW_KEY
    try:
        sealed = path.read_bytes()
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error
    return Secret(repository.key.open(sealed))


def _refuse_other_trip(found: Seed, wanted: Seed, staging: Staging) -> None:
    given, recorded = asdict(wanted), asdict(found)
    own = ("repository_id", "escrow_public_key", "created")
    differing = [name for name in given if name not in own and given[name] != recorded[name]]
    if differing:
        details = "; ".join(f"{name} is {recorded[name]!r}, not {given[name]!r}" for name in differing)
        raise JobConflict(
            f"{staging.root} belongs to another trip: {details}",
            hint="give the same command as before to go on, or name another staging",
        )


def _begin(staging: Staging, wanted: Seed, passphrase: Secret[str], cost: ScryptCost) -> Repository:
    """Open the staging's repository, making it and the seed where they are missing."""
    if staging.seed_file.exists():
        return open_staged(staging, passphrase)
    store = DirectoryStore(staging.repository)
    if store.stat("config") is None:
        for name in hash_names(store, "keys/"):  # of a beginning that came no further; no data is under them
            store.delete(f"keys/{name}")
        _make_layout(staging)
        repository = create(store, passphrase, cost=cost)
    else:
        repository = open_repository(store, passphrase)
    public_key, private_key = escrow.generate()
    durable.make_directory(staging.escrow)
    durable.write_file(staging.escrow / _ESCROW_KEY, repository.key.seal(private_key.reveal()))
    save_seed(staging, replace(wanted, repository_id=repository.id, escrow_public_key=public_key))
    return repository


def _make_layout(staging: Staging) -> None:
    """The directories as restic's `init` makes them, and links so that restic can open the staging directory itself."""
    for name in _REPOSITORY_DIRECTORIES:
        durable.make_directory(staging.repository / name)
    data = staging.repository / "data"
    try:
        for number in range(256):
            (data / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        durable.fsync_directory(data)
    except OSError as error:
        raise durable.storage_error(error, f"create directories in {data}") from error
    for name in (*_REPOSITORY_DIRECTORIES, "config"):
        with contextlib.suppress(OSError):  # a share without symlinks: restic is then given the inner directory
            (staging.root / name).symlink_to(Path(staging.repository.name) / name)


def _tidy(staging: Staging, repository: Repository, emit: Emit) -> None:
    """After a run that was cut off: remove half-written files and damaged packs, take in packs that no index names."""
    name = f"{durable.TEMPORARY_PREFIX}*"
    try:
        for path in (*staging.root.glob(name), *staging.escrow.glob(name), *staging.repository.rglob(name)):
            path.unlink()
    except OSError as error:
        raise durable.storage_error(error, f"remove half-written files in {staging.root}") from error
    _drop_damaged(staging, repository, emit)
    known = repository.pack_summaries()
    orphans = [item for item in _packs(repository) if _base_name(item) not in known]
    if not orphans:
        return
    with ThreadPoolExecutor(max_workers=2) as threads:
        try:
            entries = [entry for entry in threads.map(lambda item: _adopt(repository, item), orphans) if entry]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    repository.save_index(entries)
    emit(Note(stage=_STAGE, text=f"{len(entries)} packs of an earlier run are taken in"))


def _drop_damaged(staging: Staging, repository: Repository, emit: Emit) -> None:
    """Forget indexed packs that are gone or damaged, so that the backup stores their blobs again.

    Sizes are compared of all packs, contents of the last ones only: they may not have reached the disk. Snapshots go
    first, for they may need what is forgotten; an index file goes when the one that replaces it is durable.
    """
    known, store = repository.pack_summaries(), repository.store
    sizes = {_base_name(item): item.size_bytes for item in _packs(repository)}
    bad = {name for name, summary in known.items() if sizes.get(name) != summary.size_bytes}
    try:
        recent = heapq.nlargest(
            _RECENT_PACKS,
            known.keys() - bad,
            key=lambda name: (staging.repository / object_name(name)).stat().st_mtime_ns,
        )
    except OSError as error:
        raise durable.storage_error(error, f"look at the packs in {staging.repository}") from error
    for name in recent:
        try:
            found = verify_pack(name, store.read(object_name(name)), repository.key, None)
            if found.summary != known[name]:
                bad.add(name)
        except DataDamaged:
            bad.add(name)
    if not bad:
        return
    for name in hash_names(store, "snapshots/"):
        store.delete(f"snapshots/{name}")
    for file_name, entries in repository.index_files():
        good = [entry for entry in entries if entry.pack not in bad]
        if len(good) < len(entries):
            repository.save_index(good)
            store.delete(file_name)
    for name in bad:
        store.delete(object_name(name))
    emit(Note(stage=_STAGE, text=f"{len(bad)} packs of an earlier run are damaged; their content is stored again"))


def _packs(repository: Repository) -> list[StoredObject]:
    return [item for item in repository.store.list("data/") if is_object_name(item.name)]


def _adopt(repository: Repository, item: StoredObject) -> PackEntry | None:
    """The entry of a pack that is whole; one that is not is deleted."""
    try:
        return verify_pack(_base_name(item), repository.store.read(item.name), repository.key, None)
    except DataDamaged:
        repository.store.delete(item.name)
        return None


def own_exclusions(staging: Staging, sources: Sequence[Source], options: BackupOptions) -> BackupOptions:
    """`options` that leave out the staging itself, where it lies in a source. Raises UsageError when a source lies in
    the staging, StorageUnavailable."""
    own = {os.fsencode(path) for path in (staging.root, staging.root.resolve())}
    for source in sources:
        folder, _, name = source.path.rpartition(b"/")
        found = (source.path, os.path.realpath(folder or b"/").rstrip(b"/") + b"/" + name)
        if any(_is_inside(path, place) for path in found for place in own):
            raise UsageError(
                f"the source {display(source.path)} lies inside the staging that the backup is written to",
                hint="name a folder of its own as the staging",
            )
    inside = {path for path in own if any(_is_inside(path, source.path) for source in sources)}
    identities = identity_of(staging.root) if staging.root.exists() else frozenset()
    return replace(
        options, exclude=options.exclude | inside, exclude_identities=options.exclude_identities | identities
    )


def staged_bytes(staging: Staging) -> int:
    """Size of the packs that an earlier run has left."""
    if not (staging.repository / "data").is_dir():
        return 0
    return sum(item.size_bytes for item in DirectoryStore(staging.repository).list("data/"))


def _refuse_hopeless(staging: Staging, expected: Measure) -> None:
    try:
        free_bytes = shutil.disk_usage(staging.root).free
    except OSError as error:
        raise durable.storage_error(error, f"ask how much room {staging.root} has") from error
    if free_bytes + staged_bytes(staging) < expected.size_bytes * _MIN_FREE_PART:
        raise StorageFull(
            f"{staging.root} has {free_bytes} bytes free for a source of {expected.size_bytes} bytes",
            hint="name a staging on a larger file system",
        )


def _seal(staging: Staging, repository: Repository, snapshot: str) -> Seal:
    """List every file of the repository, with digests, and write the seal."""
    named: dict[str, list[str]] = {}
    packs = repository.pack_summaries(named=named)  # the seal says what the files say, not what this process believes
    files = [
        _sealed_file(repository, packs, item)
        for item in repository.store.list()
        if is_object_name(item.name) and not item.name.startswith("locks/")
    ]
    present = {file.name for file in files}
    missing = [name for name in packs if f"data/{name[:2]}/{name}" not in present]
    if missing and repository.store.stat("config") is None:
        raise StorageUnavailable(
            f"{staging.repository} is gone: a disk or share was unmounted",
            hint="mount it again, then give the same command again",
        )
    if missing:
        raise DataDamaged(f"{len(missing)} packs are gone from {staging.repository}, the first is {missing[0]}")
    files.sort(key=lambda file: file.name)
    seed = load_seed(staging)
    seal = Seal(
        job_name=seed.job_name,
        repository_id=seed.repository_id,
        snapshot=snapshot,
        created=clock.rfc3339(clock.now()),
        files=tuple(files),
        indexes=_places_named(named, files),
    )
    save_seal(staging.seal_file, seal)
    return seal


def _places_named(named: Mapping[str, Sequence[str]], files: Sequence[SealedFile]) -> dict[str, tuple[int, ...]]:
    """Each index file, and where in `files` the data packs stand that it names; without those that name trees only."""
    places = {file.sha256: place for place, file in enumerate(files) if file.kind is FileKind.DATA}
    found = {name: tuple(sorted(places[pack] for pack in packs if pack in places)) for name, packs in named.items()}
    return {name: where for name, where in found.items() if where}


def _sealed_file(repository: Repository, packs: Mapping[str, PackSummary], item: StoredObject) -> SealedFile:
    area, base_name = item.name.partition("/")[0], _base_name(item)
    digest = base_name
    if area == "data":
        entry = packs.get(base_name)
        if entry is None or entry.size_bytes != item.size_bytes:
            raise DataDamaged(f"{item.name} in {repository.store.location} is not what the index says")
        kind = _PACK_KINDS[entry.kind]
    else:
        kind = _KINDS[area]
        digest = hashlib.sha256(repository.store.read(item.name)).hexdigest()
    return SealedFile(name=item.name, kind=kind, size_bytes=item.size_bytes, sha256=digest)


def _result_of(seal: Seal) -> StageResult:
    packs = seal.of_kind(FileKind.DATA, FileKind.TREE)
    return StageResult(
        snapshot=seal.snapshot,
        tree="",
        files=0,
        dirs=0,
        left_out=0,
        files_unmodified=0,
        bytes_processed=0,
        bytes_added=0,
        bytes_stored=sum(file.size_bytes for file in packs),
        unreadable=(),
        changed=(),
        skipped_sockets=0,
        seal=seal,
        already_sealed=True,
    )


def _base_name(item: StoredObject) -> str:
    return item.name.rpartition("/")[2]


def _is_inside(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")
