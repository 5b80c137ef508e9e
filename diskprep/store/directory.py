"""A directory as a store, and a directory of containers as a storage account.

Object files are laid out as restic's local backend has them: directories 0700, files 0400, a temporary name in the same
directory while writing (names that are not 64 hexadecimal digits are ignored by restic).

Write order of `write`: durable.write_file. Of blocks: those of a name go one after the other into one file under
`.blocks/`; the commit syncs that file and renames it when they came in order, and else writes them anew. A crash leaves
a file under `.blocks/` that the next first block of that name overwrites. A page blob is a file that is written in
place; what is kept beside an object is in a sidecar.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import hmac
import os
import stat
import threading
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from diskprep import clock, durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, NotFound, NotSignedIn, StorageUnavailable
from diskprep.secrets import Secret
from diskprep.store import (
    Account,
    BlobState,
    ContentProperties,
    ImportTarget,
    Store,
    StoredObject,
    check_metadata,
    check_name,
    check_properties,
)
from diskprep.store.sidecar import NOTHING, Beside, Sidecars

_BLOCKS = ".blocks"
_COPY_BYTES = 1 << 26
_PAGE_BYTES = 512
_PAGES_AT_ONCE_BYTES = 4 << 20
_NOT_BETWEEN_THESE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without a common copy


class DirectoryStore:
    """A directory whose files are the objects; sub-directories are made as names need them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._device: int | None = None  # of the file system that the first object was written to
        self._staged: dict[str, _Staged] = {}
        self._lock = threading.Lock()
        self._sidecars = Sidecars(root)

    @property
    def location(self) -> str:
        return str(self._root)

    @property
    def root(self) -> Path:
        return self._root

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        top = self._root / check_name(prefix.removesuffix("/")) if prefix else self._root
        pending = [top]
        try:
            while pending:
                with contextlib.suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
                    # What is deleted meanwhile, as locks are, is not listed; nothing else is left out for it.
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(Path(entry.path))
                        elif entry.is_file(follow_symlinks=False):
                            name = str(Path(entry.path).relative_to(self._root))
                            try:
                                size_bytes = entry.stat(follow_symlinks=False).st_size
                            except FileNotFoundError:
                                continue
                            yield StoredObject(name=name, size_bytes=size_bytes)
        except OSError as error:
            raise durable.storage_error(error, f"list {top}") from error

    def stat(self, name: str) -> StoredObject | None:
        status = self._status(name)
        return None if status is None else StoredObject(name=name, size_bytes=status.st_size)

    def _status(self, name: str) -> os.stat_result | None:
        """Of the object's file; None when there is none."""
        try:
            status = (self._root / check_name(name)).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise durable.storage_error(error, f"look at {name} in {self._root}") from error
        return status if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            descriptor = os.open(self._root / check_name(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                wanted = os.fstat(descriptor).st_size - offset if length is None else length
                data = bytearray()
                while len(data) < wanted:
                    part = os.pread(descriptor, wanted - len(data), offset + len(data))
                    if not part:
                        break
                    data += part
            finally:
                os.close(descriptor)
        except OSError as error:
            raise durable.storage_error(error, f"read {name} in {self._root}") from error
        if len(data) != wanted:
            raise DataDamaged(f"{name} in {self._root} is shorter than it should be")
        return bytes(data)

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        path = self._root / check_name(name)
        self._stay_in_place()
        durable.make_directory(path.parent)
        try:
            self._forget(name)
            durable.write_file(path, parts, mode=0o400)
        except NotFound:  # the directory that was there a moment ago
            self._stay_in_place()
            raise

    def delete(self, name: str) -> None:
        path = self._root / check_name(name)
        try:
            self._sidecars.forget(name)
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                durable.fsync_directory(path.parent)
        except OSError as error:
            raise durable.storage_error(error, f"delete {path}") from error

    def stage_block(self, name: str, block_id: str, data: Buffer, md5: bytes) -> None:
        if hashlib.md5(data, usedforsecurity=False).digest() != md5:
            raise DataDamaged(f"a block of {name} does not have the MD5 it was announced with")
        try:
            with self._lock:
                if name not in self._staged:
                    self._staged[name] = _Staged(self._aside(name))
                    durable.make_directory(self._staged[name].path.parent)
                    self._staged[name].path.unlink(missing_ok=True)  # of a run that crashed
                staged = self._staged[name]
                offset, staged.end = staged.end, staged.end + len(data)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(staged.path, flags, 0o600)
            try:
                os.lseek(descriptor, offset, os.SEEK_SET)
                durable.write_all(descriptor, (data,))
            finally:
                os.close(descriptor)
            with self._lock:
                staged.ranges[block_id] = (offset, len(data))  # only what was written counts
        except OSError as error:
            raise durable.storage_error(error, f"write a block of {name} in {self._root}") from error

    def commit_blocks(self, name: str, block_ids: Sequence[str], *, md5: bytes | None = None) -> None:
        with self._lock:
            staged = self._staged.pop(name, _Staged(self._aside(name)))
        path = self._root / check_name(name)
        durable.make_directory(path.parent)
        try:
            wanted = [staged.ranges[block_id] for block_id in block_ids]
            if md5 is not None and _md5_of(staged.parts(wanted)) != md5:
                raise DataDamaged(f"the blocks of {name} do not make the announced whole")
            self._forget(name)
            if staged.is_whole(wanted):
                durable.move_file(staged.path, path, mode=0o400)
            else:
                durable.write_file(path, staged.parts(wanted), mode=0o400)
                staged.path.unlink(missing_ok=True)
        except KeyError:
            raise NotFound(f"a block of {name} was never staged") from None
        except OSError as error:
            raise durable.storage_error(error, f"write {name} in {self._root}") from error

    def copy_from(self, source: Store, name: str) -> bool:
        if not isinstance(source, DirectoryStore):
            return False
        origin, path = source.root / check_name(name), self._root / name
        durable.make_directory(path.parent)
        temporary = path.with_name(f"{durable.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            with origin.open("rb") as reader, temporary.open("wb") as writer:
                while os.copy_file_range(reader.fileno(), writer.fileno(), _COPY_BYTES):
                    pass
                durable.set_mode(writer.fileno(), 0o400)
                os.fsync(writer.fileno())
            self._sidecars.forget(name)
            temporary.replace(path)
            durable.fsync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if error.errno in _NOT_BETWEEN_THESE:
                return False
            raise durable.storage_error(error, f"copy {name} from {source.root} to {self._root}") from error
        return True

    def inspect(self, name: str) -> BlobState | None:
        status = self._status(name)
        if status is None:
            return None
        beside = self._sidecars.get(name, status)
        return BlobState(
            size_bytes=status.st_size,
            version=f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}",
            is_page_blob=beside.is_page_blob,
            leased=beside.leased,
            properties=beside.properties,
            metadata=beside.metadata,
        )

    def create_pages(self, name: str, size_bytes: int, metadata: Mapping[str, str]) -> None:
        check_metadata(metadata)
        if size_bytes < 0 or size_bytes % _PAGE_BYTES:
            raise DataDamaged(f"a page blob has whole pages; {name} would have {size_bytes} bytes")
        path = self._root / check_name(name)
        durable.make_directory(path.parent)
        temporary = path.with_name(f"{durable.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as writer:
                durable.set_mode(writer.fileno(), 0o600)
                writer.truncate(size_bytes)
                os.fsync(writer.fileno())
            # The sidecar first: it says nothing of an object that is not there yet, and all of it from then on.
            beside = replace(NOTHING, is_page_blob=True, metadata=dict(metadata))
            self._sidecars.put(name, temporary.stat(), beside)
            temporary.replace(path)
            durable.fsync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise durable.storage_error(error, f"create {name} in {self._root}") from error

    def write_pages(self, name: str, offset: int, data: Buffer, md5: bytes) -> None:
        state = self.inspect(name)
        if state is None:
            raise NotFound(f"{name} does not exist in {self._root}")
        if not state.is_page_blob:
            raise DataDamaged(f"{name} in {self._root} is not a page blob")
        size = memoryview(data).nbytes
        if offset % _PAGE_BYTES or size % _PAGE_BYTES or not 0 < size <= _PAGES_AT_ONCE_BYTES:
            raise DataDamaged(f"{size} bytes at {offset} of {name} are not 1 to 8192 whole pages")
        if offset < 0 or offset + size > state.size_bytes:
            raise DataDamaged(f"pages up to byte {offset + size} of {name}, which has {state.size_bytes}")
        if hashlib.md5(data, usedforsecurity=False).digest() != md5:
            raise DataDamaged(f"pages of {name} do not have the MD5 they were announced with")
        try:
            descriptor = os.open(self._root / name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.lseek(descriptor, offset, os.SEEK_SET)
                durable.write_all(descriptor, (data,))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise durable.storage_error(error, f"write pages of {name} in {self._root}") from error

    def set_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        check_metadata(metadata)
        status, beside = self._beside(name)
        self._sidecars.put(name, status, replace(beside, metadata=dict(metadata)))

    def set_properties(self, name: str, properties: ContentProperties) -> None:
        check_properties(properties)
        status, beside = self._beside(name)
        if properties.content_md5 is None:
            properties = replace(properties, content_md5=beside.properties.content_md5)
        self._sidecars.put(name, status, replace(beside, properties=properties))

    def set_lease(self, name: str, *, held: bool) -> None:
        """Hold or give back the lease on an object, as somebody else would: to practise with."""
        status, beside = self._beside(name)
        self._sidecars.put(name, status, replace(beside, leased=held))

    def _beside(self, name: str) -> tuple[os.stat_result, Beside]:
        status = self._status(name)
        if status is None:
            raise NotFound(f"{name} does not exist in {self._root}")
        return status, self._sidecars.get(name, status)

    def _forget(self, name: str) -> None:
        try:
            self._sidecars.forget(name)
        except OSError as error:
            raise durable.storage_error(error, f"write {name} in {self._root}") from error

    def _stay_in_place(self) -> None:
        """Raise StorageUnavailable when the root is no longer on the file system that it was on: what is written then
        would fill the one below the mount point, and be hidden there later."""
        if self._device is None:
            durable.make_directory(self._root)
        try:
            device = self._root.stat().st_dev
        except FileNotFoundError:
            device = -1
        except OSError as error:
            raise durable.storage_error(error, f"look at {self._root}") from error
        if self._device is None:
            self._device = device
        if device != self._device:
            raise StorageUnavailable(
                f"{self._root} is gone, or on another file system than before: a disk or share was unmounted",
                hint="mount it again, then give the same command again",
            )

    def _aside(self, name: str) -> Path:
        return self._root / _BLOCKS / hashlib.sha256(check_name(name).encode()).hexdigest()


@dataclass(slots=True)
class _Staged:
    """The blocks of one name, one after the other in a file aside: block id -> (offset, length)."""

    path: Path
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    end: int = 0

    def is_whole(self, wanted: Sequence[tuple[int, int]]) -> bool:
        """Whether the file aside is just the wanted ranges, in order, each once."""
        place = 0
        for offset, length in wanted:
            if offset != place:
                return False
            place += length
        return 0 < place == self.end

    def parts(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        if wanted:
            with self.path.open("rb", buffering=0) as stream:
                for offset, length in wanted:
                    yield os.pread(stream.fileno(), length, offset)


def _md5_of(parts: Iterable[bytes]) -> bytes:
    whole = hashlib.md5(usedforsecurity=False)
    for part in parts:
        whole.update(part)
    return whole.digest()


class DirectoryAccount:
    """An embedded storage account: each container is a directory, each signature an HMAC under the account's key.

    `paths` places containers somewhere of their own; the others go below `root`.
    """

    def __init__(self, name: str, root: Path, key: Secret[bytes], paths: dict[str, Path] | None = None) -> None:
        self._name, self._root, self._key, self._paths = name, root, key, dict(paths or {})

    @property
    def name(self) -> str:
        return self._name

    def container(self, name: str) -> ImportTarget:
        path = self._paths.get(name, self._root / check_name(name))
        durable.make_directory(path)
        return DirectoryStore(path)

    def container_sas(self, name: str, expires: datetime) -> Secret[str]:
        until = clock.rfc3339(expires)
        query = urllib.parse.urlencode({"se": until, "sp": "rwdl", "sr": "c", "sig": self._sign(name, until)})
        return Secret(f"{name}?{query}")

    def open_sas(self, sas: Secret[str]) -> ImportTarget:
        name, _, query = sas.reveal().partition("?")
        fields = dict(urllib.parse.parse_qsl(query))
        try:
            genuine = hmac.compare_digest(self._sign(name, fields["se"]), fields["sig"])
            expired = clock.parse_rfc3339(fields["se"]) < clock.now()
        except (KeyError, ValueError, TypeError):
            raise NotSignedIn("the container's signature is malformed") from None
        if not genuine or expired:
            raise NotSignedIn(f"the signature for container {name!r} is {'expired' if genuine else 'not genuine'}")
        return self.container(name)

    def open_key(self, key: Secret[str]) -> Account:
        if not hmac.compare_digest(base64.b64encode(self._key.reveal()), key.reveal().encode()):
            raise NotSignedIn(f"the key is not that of the account {self._name}")
        return self

    def _sign(self, container: str, until: str) -> str:
        message = f"{self._name}\n{container}\n{until}".encode()
        return hmac.new(self._key.reveal(), message, hashlib.sha256).hexdigest()
