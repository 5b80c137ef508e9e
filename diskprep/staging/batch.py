"""A batch: some entries of one directory that are not directories, done by one worker from open to pack.

Metadata is read anew even of unchanged files; only their content is taken over from the base.
"""

from __future__ import annotations

import marshal
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import NamedTuple

from diskprep.errors import DiskprepError
from diskprep.repository.chunker import MIN_BYTES
from diskprep.repository.pack import BlobKind
from diskprep.repository.tree import Base, BaseFile, Node, NodeType, encode_file, encode_node, encode_owner, go_mode
from diskprep.source import Entry, EntryUnreadable, OpenDirectory, group_name, user_name
from diskprep.staging.blobs import BlobSession, PackStream, Stored

#: Files up to this size are one chunk by the format's rule, so they need no cutting.
SMALL_BYTES = MIN_BYTES
_TYPES = {
    stat.S_IFREG: NodeType.FILE,
    stat.S_IFLNK: NodeType.SYMLINK,
    stat.S_IFIFO: NodeType.FIFO,
    stat.S_IFBLK: NodeType.DEV,
    stat.S_IFCHR: NodeType.CHARDEV,
}


class BatchItem(NamedTuple):
    """An entry `name` of an open directory, which the tree calls `shown`; `base` is the file of that name in the base
    snapshot, None when there is none or the batch says where to look."""

    name: bytes
    shown: bytes
    is_regular: bool
    base: BaseFile | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one directory. `device`: entries on another one are left out; None: they are not. `base_tree`: the
    tree of that directory in the base snapshot; None: the items tell themselves what their base is."""

    items: tuple[BatchItem, ...]
    device: int | None = None
    base_tree: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRule:
    """What is done with a regular file, before it is read. `larger_than_bytes`: longer ones are left out. `load_base`
    reads a tree of the base snapshot; it raises DiskprepError when that is lost."""

    session: BlobSession
    load_base: Callable[[bytes], Base]
    ignore_ctime: bool = False
    ignore_inode: bool = False
    larger_than_bytes: int | None = None

    def leaves_out(self, size_bytes: int) -> bool:
        return self.larger_than_bytes is not None and size_bytes > self.larger_than_bytes

    def content(self, status: os.stat_result, base: BaseFile | None) -> tuple[bytes, ...] | None:
        """The base's content when the file is unchanged, as restic decides it, and all its chunks are stored."""
        if base is None or base.size != status.st_size:
            return None
        if not self.ignore_inode and base.inode != status.st_ino:
            return None
        if not base.has_times(status.st_mtime_ns, None if self.ignore_ctime else status.st_ctime_ns):
            return None
        has = self.session.has
        return base.content if all(has(BlobKind.DATA, blob_id) for blob_id in base.content) else None


@dataclass(slots=True, kw_only=True)
class BatchResult:
    """What became of a batch. `nodes`: name and encoded node; `long_files` (numbers of items) are left to be cut by
    somebody else. `lost_base`: why the base could not be looked at; all was read then."""

    nodes: list[tuple[bytes, bytes]] = field(default_factory=list)
    long_files: list[int] = field(default_factory=list)
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    lost_base: str = ""
    files: int = 0
    files_unmodified: int = 0
    left_out: int = 0
    size_bytes: int = 0
    sockets: int = 0


def run_batch(opened: OpenDirectory, batch: Batch, rule: FileRule, stream: PackStream) -> BatchResult:
    """Store what is new of a batch's items in `opened`. Raises only what storing raises."""
    run = _Run(opened, batch, rule, stream)
    for number, item in enumerate(batch.items):
        try:
            if item.is_regular:
                run.file(number, item)
            else:
                run.other(item)
        except EntryUnreadable as error:
            run.result.unreadable.append((item.shown, error.message))
    return run.result


class _Run:
    """A batch under way."""

    __slots__ = ("_always_read", "_base", "_device", "_opened", "_rule", "_stream", "result")

    def __init__(self, opened: OpenDirectory, batch: Batch, rule: FileRule, stream: PackStream) -> None:
        self._opened, self._device, self._rule, self._stream = opened, batch.device, rule, stream
        self._always_read = batch.device is None and rule.larger_than_bytes is None
        self.result = BatchResult()
        self._base: Mapping[bytes, BaseFile] = {}
        if batch.base_tree is not None:
            try:
                self._base = rule.load_base(batch.base_tree).files
            except DiskprepError as error:
                self.result.lost_base = error.message

    def file(self, number: int, item: BatchItem) -> None:
        content: tuple[bytes, ...] | None = None
        base = item.base or self._base.get(item.shown)

        def is_wanted(status: os.stat_result) -> bool:
            nonlocal content
            if self._leaves_out(status):
                return False
            content = self._rule.content(status, base)
            return content is None

        ask = None if self._always_read and base is None else is_wanted
        file = self._opened.read_small(item.name, SMALL_BYTES, ask)
        status, data, result = file.stat, file.data, self.result
        size_bytes = status.st_size
        if not self._always_read and self._leaves_out(status):
            result.left_out += 1
            return
        if content is not None:
            result.files_unmodified += 1
        elif data is None:
            result.long_files.append(number)
            return
        else:
            size_bytes = len(data)
            content = (self._stream.save(data),) if data else ()
            if file.changed:
                result.changed.append(item.shown)
        owner = owner_text(status.st_uid, status.st_gid)
        node = encode_file(item.shown, status, owner=owner, xattrs=file.xattrs, content=content, size_bytes=size_bytes)
        result.nodes.append((item.shown, node))
        result.files += 1
        result.size_bytes += size_bytes

    def other(self, item: BatchItem) -> None:
        entry = self._opened.describe(item.name)
        node_type = _TYPES.get(stat.S_IFMT(entry.stat.st_mode))
        if self._device is not None and entry.stat.st_dev != self._device:
            self.result.left_out += 1
        elif stat.S_ISSOCK(entry.stat.st_mode):
            self.result.sockets += 1
        elif node_type is None or node_type is NodeType.FILE:
            self.result.unreadable.append((item.shown, "it was replaced while it was being looked at"))
        else:
            self.result.nodes.append((item.shown, encode_node(node_of(item.shown, entry, node_type))))

    def _leaves_out(self, status: os.stat_result) -> bool:
        on_another_device = self._device is not None and status.st_dev != self._device
        return on_another_device or self._rule.leaves_out(status.st_size)


@cache
def owner_text(uid: int, gid: int) -> str:
    """The owner as an entry's text has it, with the names that this computer knows."""
    return encode_owner(uid, gid, user_name(uid), group_name(gid))


# -- as messages between processes


def pack_batch(batch: Batch) -> bytes:
    items = [(item.name, item.shown, item.is_regular, item.base and tuple(item.base)) for item in batch.items]
    return marshal.dumps((items, batch.device, batch.base_tree))


def unpack_batch(message: bytes) -> Batch:
    """The inverse of `pack_batch`, for what the parent process packed."""
    items, device, base_tree = marshal.loads(message)  # noqa: S302 - from our own parent
    found = [BatchItem(name, shown, is_regular, base and BaseFile(*base)) for name, shown, is_regular, base in items]
    return Batch(tuple(found), device, base_tree)


def pack_result(result: BatchResult) -> bytes:
    return marshal.dumps([getattr(result, item.name) for item in fields(BatchResult)])


def unpack_result(message: bytes) -> BatchResult:
    """The inverse of `pack_result`, for what a child of ours packed."""
    values = marshal.loads(message)  # noqa: S302 - from our own child
    return BatchResult(**dict(zip([item.name for item in fields(BatchResult)], values, strict=True)))


class BatchWorker:
    """The `Worker` of a crew that does batches: one stream of packs, one session, in a process of its own."""

    def __init__(self, session: BlobSession, rule: FileRule) -> None:
        self._session, self._rule = session, rule
        self._stream = session.stream(BlobKind.DATA)

    def work(self, directory: int, message: bytes) -> bytes:
        batch = unpack_batch(message)
        try:
            opened = OpenDirectory.of(directory)
        except EntryUnreadable as error:
            unreadable = [(item.shown, error.message) for item in batch.items]
            return pack_result(BatchResult(unreadable=unreadable))
        try:
            return pack_result(run_batch(opened, batch, self._rule, self._stream))
        finally:
            opened.close()

    def finish(self) -> bytes:
        self._stream.flush()
        self._session.save_index()
        return marshal.dumps(tuple(self._session.stored))

    def abandon(self, *, flush: bool) -> bytes:
        if flush:
            self._stream.flush()
        self._session.save_index()
        return b""


def unpack_stored(message: bytes) -> Stored:
    """What a `BatchWorker` said at its end."""
    return Stored(*marshal.loads(message))  # noqa: S302 - from our own child


def node_of(
    name: bytes,
    entry: Entry,
    node_type: NodeType,
    *,
    content: tuple[bytes, ...] | None = None,
    size_bytes: int = 0,
    subtree: bytes | None = None,
) -> Node:
    """The tree's node for an entry. The access time is given as the modification time, as restic does: a tree that held
    the real one would differ after every reading."""
    status = entry.stat
    device = status.st_rdev if node_type in (NodeType.DEV, NodeType.CHARDEV) else 0
    return Node(
        name=name,
        type=node_type,
        mode=go_mode(status.st_mode),
        mtime=status.st_mtime_ns,
        atime=status.st_mtime_ns,
        ctime=status.st_ctime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        user=entry.user,
        group=entry.group,
        inode=status.st_ino,
        device_id=status.st_dev,
        size=size_bytes,
        links=status.st_nlink,
        linktarget=entry.linktarget,
        xattrs=entry.xattrs,
        device=device,
        content=content,
        subtree=subtree,
    )
