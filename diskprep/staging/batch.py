"""A batch: some entries of one directory that are not directories, done by one worker from open to pack.

Metadata is read anew even of unchanged files; only their content is taken over from the base.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from diskprep.repository.chunker import MIN_BYTES
from diskprep.repository.pack import BlobKind
from diskprep.repository.tree import Node, NodeType, encode_node, go_mode
from diskprep.source import Entry, EntryUnreadable, OpenDirectory
from diskprep.staging.blobs import BlobSession, PackStream

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
    """An entry `name` of an open directory, which the tree calls `shown`."""

    name: bytes
    shown: bytes
    is_regular: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """The rule by which a file need not be read: as restic decides it."""

    session: BlobSession
    ignore_ctime: bool
    ignore_inode: bool

    def content(self, entry: Entry, base: Node | None) -> tuple[bytes, ...] | None:
        """The base's content when the file is unchanged and all its chunks are stored, else None."""
        if base is None or base.type is not NodeType.FILE or base.content is None:
            return None
        now = entry.stat
        if base.size != now.st_size or base.mtime != now.st_mtime_ns:
            return None
        if not self.ignore_ctime and base.ctime != now.st_ctime_ns:
            return None
        if not self.ignore_inode and base.inode != now.st_ino:
            return None
        has = self.session.has
        return base.content if all(has(BlobKind.DATA, blob_id) for blob_id in base.content) else None


@dataclass(slots=True, kw_only=True)
class BatchResult:
    """What became of a batch. `nodes`: name and encoded node; `long_files` are left to be cut by somebody else."""

    nodes: list[tuple[bytes, bytes]] = field(default_factory=list)
    long_files: list[BatchItem] = field(default_factory=list)
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    files: int = 0
    files_unmodified: int = 0
    size_bytes: int = 0
    sockets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`items` of `opened`; `base` has the nodes of that directory in the base snapshot, by name."""

    opened: OpenDirectory
    items: tuple[BatchItem, ...]
    base: Mapping[bytes, Node]
    unchanged: Unchanged

    def run(self, stream: PackStream) -> BatchResult:
        """Store what is new. Raises only what storing raises."""
        result = BatchResult()
        for item in self.items:
            try:
                if item.is_regular:
                    self._file(item, stream, result)
                else:
                    self._other(item, result)
            except EntryUnreadable as error:
                result.unreadable.append((item.shown, error.message))
        return result

    def _file(self, item: BatchItem, stream: PackStream, result: BatchResult) -> None:
        file = self.opened.file(item.name)
        try:
            size_bytes = file.entry.stat.st_size
            content = self.unchanged.content(file.entry, self.base.get(item.shown))
            if content is not None:
                result.files_unmodified += 1
            else:
                data = file.read_small(SMALL_BYTES) if size_bytes <= SMALL_BYTES else None
                if data is None:
                    result.long_files.append(item)
                    return
                size_bytes = len(data)
                content = (stream.save(data),) if data else ()
                if file.changed():
                    result.changed.append(item.shown)
        finally:
            file.close()
        node = node_of(item.shown, file.entry, NodeType.FILE, content=content, size_bytes=size_bytes)
        result.nodes.append((item.shown, encode_node(node)))
        result.files += 1
        result.size_bytes += size_bytes

    def _other(self, item: BatchItem, result: BatchResult) -> None:
        entry = self.opened.describe(item.name)
        node_type = _TYPES.get(stat.S_IFMT(entry.stat.st_mode))
        if stat.S_ISSOCK(entry.stat.st_mode):
            result.sockets += 1
        elif node_type is None or node_type is NodeType.FILE:
            result.unreadable.append((item.shown, "it was replaced while it was being looked at"))
        else:
            result.nodes.append((item.shown, encode_node(node_of(item.shown, entry, node_type))))


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
