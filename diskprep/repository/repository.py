"""The repository: config, keys, blobs, index, snapshots and locks of one store, in restic's format version 2.

Every file is written once under the hash of its content. Write order, so that whatever is visible can be resolved: key
before config; packs before the index file that names them; index files before the snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from diskprep.durable import Buffer
from diskprep.errors import (
    DataDamaged,
    DiskprepError,
    FormatTooNew,
    Locked,
    NotBuilt,
    NotFound,
    StorageUnavailable,
    UsageError,
    WrongPassphrase,
)
from diskprep.repository import chunker, codec, keys, pack
from diskprep.repository import lock as locks
from diskprep.repository.crypto import DataKey
from diskprep.repository.index import Index, encode_index, parse_index, summarize_index
from diskprep.repository.locations import Locations
from diskprep.repository.pack import BlobKind, PackEntry, PackSummary
from diskprep.repository.snapshot import Snapshot, parse_snapshot, snapshot_document
from diskprep.secrets import Secret, check_new_passphrase
from diskprep.store import Store

FORMAT_VERSION = 2
DEFAULT_PACK_BYTES = 16 << 20
_AREAS = ("index", "keys", "locks", "snapshots")
_HEX_NAME = re.compile(r"[0-9a-f]{64}")


class Repository:
    """An opened repository. Reading blobs is safe from many threads; everything else belongs to one. Inside `lock`
    nothing is written once the lock is lost: packs, index files and snapshots then raise Locked."""

    def __init__(
        self,
        store: Store,
        key: DataKey,
        repository_id: str,
        polynomial: int,
        pack_size_bytes: int = DEFAULT_PACK_BYTES,
        *,
        slot: str = "",
    ) -> None:
        self.store, self.key, self.id, self.polynomial = store, key, repository_id, polynomial
        self.slot = slot  # the key file that the passphrase opened: its name below keys/
        self.pack_size_bytes = pack_size_bytes
        self._index: Index | None = None
        self._locks = locks.LockDirectory(store, key)
        self._lock: locks.Lock | None = None

    # -- blobs

    @property
    def index(self) -> Index:
        """What all index files say, read at the first use."""
        if self._index is None:
            self.reload_index()
        assert self._index is not None
        return self._index

    def reload_index(self) -> None:
        """Read all index files again. Raises DataDamaged."""
        index = Index()
        for _, entries in self.index_files():
            for entry in entries:
                index.add(entry)
        self._index = index

    def forget_index(self) -> None:
        """Give the index's memory back; it is read again at the next use."""
        self._index = None

    def count_index_bytes(self) -> int:
        """Size of all index files together."""
        return sum(item.size_bytes for item in self.store.list("index/"))

    def index_files(self) -> Iterator[tuple[str, list[PackEntry]]]:
        """Object name of each index file, and the packs it names. Raises DataDamaged."""
        for name, document in self._sealed_files("index/"):
            yield f"index/{name}", parse_index(document)

    def pack_summaries(self, *, named: dict[str, list[str]] | None = None) -> dict[str, PackSummary]:
        """Kind and size of every pack that an index file names, read anew. `named` is given the object name of each
        index file, and the packs that it names. Memory: 300 bytes a pack. Raises DataDamaged, also when two files say
        different things of a pack."""
        found: dict[str, PackSummary] = {}
        for name, document in self._sealed_files("index/"):
            summaries = summarize_index(document)
            for pack_name, summary in summaries.items():
                if found.setdefault(pack_name, summary) != summary:
                    raise DataDamaged(f"index/{name}: another index file describes pack {pack_name} differently")
            if named is not None:
                named[f"index/{name}"] = list(summaries)
        return found

    def index_documents(self) -> Iterator[dict[str, Any]]:
        """The content of each index file. Raises DataDamaged."""
        for _, document in self._sealed_files("index/"):
            yield document

    def load_blob(self, kind: BlobKind, blob_id: bytes, *, index: Index | Locations | None = None) -> bytes:
        """The plaintext of a blob, checked; `index` says where it lies, None: this repository's own. Raises NotFound
        when it does not, DataDamaged."""
        location = (self.index if index is None else index).find(kind, blob_id)
        if location is None:
            raise NotFound(f"no index of {self.store.location} has the {kind} blob {blob_id.hex()}")
        sealed = self.store.read(pack.object_name(location.pack), location.offset, location.length)
        return pack.open_blob(sealed, location, self.key)

    def save_pack(self, entry: PackEntry, data: Buffer) -> None:
        """Write a pack, `data`, durably. Its entry goes to `save_index` afterwards."""
        if self._lock is not None:
            self._lock.require_fresh()
        self.store.write(pack.object_name(entry.pack), [data])

    def save_index(self, entries: Iterable[PackEntry]) -> str | None:
        """Write one index file for packs that are already durable; return its id, None when there is nothing to say."""
        entries = tuple(entries)
        if not entries:
            return None
        if self._lock is not None:
            self._lock.require_held()
        name = self._save_sealed("index/", codec.encode_text(encode_index(entries)))
        if self._index is not None:
            for entry in entries:
                self._index.add(entry)
        return name

    # -- snapshots

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        found = [parse_snapshot(name, document) for name, document in self._sealed_files("snapshots/")]
        return sorted(found, key=lambda snapshot: (snapshot.time, snapshot.id))

    def snapshot(self, name: str = "latest") -> Snapshot:
        """The snapshot with this id, the only one whose id starts so, or the `latest`. Raises NotFound, UsageError."""
        found = self.snapshots()
        if name == "latest":
            found = found[-1:]
        else:
            found = [snapshot for snapshot in found if name and snapshot.id.startswith(name)]
        if not found:
            raise NotFound(f"{self.store.location} has no snapshot {name!r}")
        if len(found) > 1:
            raise UsageError(f"{len(found)} snapshots start with {name!r}", hint="give more digits")
        return found[0]

    def save_snapshot(self, snapshot: Snapshot) -> str:
        """Write a snapshot (its `id` is ignored) and return its id: the recovery point exists from then on."""
        if self._lock is not None:
            self._lock.require_held()
        name = self._save_sealed("snapshots/", codec.encode_json(snapshot_document(replace(snapshot, id=""))))
        if self._lock is not None:
            try:
                self._lock.require_fresh()
            except Locked:  # all may have stood still while it was written, and been pruned
                self.store.delete(f"snapshots/{name}")
                raise
        return name

    # -- locks

    @contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[locks.Lock]:
        """Hold a lock inside a `with`. Raises Locked on entering."""
        outer = self._lock
        with locks.locked(self._locks, exclusive=exclusive) as lock:
            self._lock = lock
            try:
                yield lock
            finally:
                self._lock = outer

    def hold(self, label: str = "import", *, lifetime_s: float = locks.HOLD_LIFETIME_S) -> locks.Hold:
        """Place a hold that outlives this process; `label` tells holds apart, for example a job's name."""
        return locks.place_hold(self._locks, label, lifetime_s)

    def find_holds(self) -> list[locks.Hold]:
        """The holds in this repository, of whichever process."""
        return locks.find_holds(self._locks)

    def remove_stale_locks(self) -> None:
        """Delete locks that count for nothing: of dead processes of this computer, or long without a refresh.
        Not holds: one that has expired says that disks may travel still."""
        for record in self._locks.records():
            if record.is_stale() and not record.is_hold:
                self._locks.delete(record.name)

    # -- sealed JSON files

    def _save_sealed(self, prefix: str, plaintext: bytes) -> str:
        sealed = self.key.seal(plaintext)
        name = hashlib.sha256(sealed).hexdigest()
        self.store.write(prefix + name, [sealed])
        return name

    def _sealed_files(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in sorted(hash_names(self.store, prefix)):
            content = self.store.read(prefix + name)
            yield name, self._opened(prefix + name, content, codec.decode_json)

    def _opened(self, name: str, content: Buffer, decode: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        try:
            if hashlib.sha256(content).hexdigest() != name.rpartition("/")[2]:
                raise DataDamaged("its hash is not its name")
            return decode(self.key.open(content))
        except DataDamaged as error:
            raise DataDamaged(f"{name} in {self.store.location}: {error.message}") from None


def create(store: Store, passphrase: Secret[str], *, cost: keys.ScryptCost = keys.DEFAULT_COST) -> Repository:
    """Make a new repository in an empty store. Raises UsageError when there is one, or the passphrase is too short."""
    check_new_passphrase(passphrase)
    if store.stat("config") is not None or any(store.list("keys/")):
        raise UsageError(f"{store.location} already holds a repository, or a part of one")
    key = DataKey.generate()
    wrapped = keys.wrap(key, passphrase, socket.gethostname(), cost)
    slot = hashlib.sha256(wrapped).hexdigest()
    repository = Repository(store, key, os.urandom(32).hex(), chunker.random_polynomial(), slot=slot)
    store.write(f"keys/{slot}", [wrapped])
    config = {"version": FORMAT_VERSION, "id": repository.id, "chunker_polynomial": f"{repository.polynomial:x}"}
    store.write("config", [key.seal(json.dumps(config, separators=(",", ":")).encode())])
    return repository


def open_repository(store: Store, passphrase: Secret[str]) -> Repository:
    """Open the repository in a store with any of its key files; damaged and foreign ones among them block nobody.

    Raises NotFound, WrongPassphrase, FormatTooNew, NotBuilt, DataDamaged or StorageUnavailable.
    """
    if store.stat("config") is None:
        raise NotFound(f"there is no repository in {store.location}: it has no config")
    key, slot, opened = _unlock(store, passphrase, store.read("config"))
    try:
        config = json.loads(opened)
        version, polynomial = int(config["version"]), int(config["chunker_polynomial"], 16)
        repository_id = config["id"]
        if not _HEX_NAME.fullmatch(repository_id) or not chunker.is_irreducible(polynomial):
            raise ValueError("an impossible value")
    except (ValueError, KeyError, TypeError):
        raise DataDamaged(f"the config of the repository in {store.location} is damaged") from None
    if version == 1:
        raise NotBuilt(
            f"the repository in {store.location} has format 1, which has no compression",
            hint="upgrade it first: restic migrate upgrade_repo_v2",
        )
    if version != FORMAT_VERSION:
        raise FormatTooNew(f"the repository in {store.location} has format {version}; this diskprep knows 2")
    return Repository(store, key, repository_id, polynomial, slot=slot)


def is_object_name(name: str) -> bool:
    """Whether a repository has objects of this name; all others in its store are somebody else's."""
    area, _, rest = name.partition("/")
    if area == "data":
        return bool(_HEX_NAME.fullmatch(rest[3:])) and name == pack.object_name(rest[3:])
    return name == "config" or (area in _AREAS and bool(_HEX_NAME.fullmatch(rest)))


def hash_names(store: Store, prefix: str) -> list[str]:
    """Last components of all names below `prefix` that are 64 hexadecimal digits; others are not the repository's."""
    names = (item.name.rpartition("/")[2] for item in store.list(prefix))
    return [name for name in names if _HEX_NAME.fullmatch(name)]


def _unlock(store: Store, passphrase: Secret[str], config: bytes) -> tuple[DataKey, str, bytes]:
    """The data key, the name of the key file that had it, and the config it opens.

    All key files are tried, where restic ends after 20; the cheapest first, so that one that asks for a minute of work
    delays nobody else.
    """
    names = sorted(hash_names(store, "keys/"))
    files: list[tuple[keys.KeyFile, str]] = []
    faults: list[DiskprepError] = []
    for name in names:
        try:
            files.append((keys.parse(store.read(f"keys/{name}")), name))
        except NotFound:  # removed between listing and reading
            continue
        except (DataDamaged, StorageUnavailable) as error:
            faults.append(error)
    foreign = False
    for file, name in sorted(files, key=lambda found: (found[0].cost.work, found[1])):
        try:
            key = file.unwrap(passphrase)
        except WrongPassphrase:
            continue
        except DataDamaged as error:
            faults.append(error)
            continue
        try:
            return key, name, key.open(config)
        except DataDamaged:  # of another repository, or the config is damaged
            foreign = True
    if foreign:
        raise DataDamaged(f"the config of the repository in {store.location} is damaged, or the key is not its own")
    if not files and not faults:
        raise NotFound(f"the repository in {store.location} has no key file")
    if not files:
        raise faults[0]
    untried = f"; {len(faults)} of its key files are damaged or cannot be read" if faults else ""
    raise WrongPassphrase(
        f"no key of the repository in {store.location} opens with this passphrase{untried}",
        hint="check the passphrase file; a passphrase cannot be recovered",
    )
