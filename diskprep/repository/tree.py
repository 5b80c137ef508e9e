"""Trees: directory listings, written so that restic would write the same bytes, and so finds nothing to add later.

    {"nodes":[ nodes joined by , ]} LF        sorted by the raw bytes of the names, no name twice

Invariants: `parse_tree` hands out no name that could lead out of its directory; `encode_tree(parse_tree(x)) == x` for
trees written in this zone on a POSIX system.
"""

from __future__ import annotations

import base64
import itertools
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType
from typing import Any

from diskprep.errors import DataDamaged
from diskprep.repository.quoting import format_time, json_string, parse_time, quote_name, unquote_name

_MODE_DIR, _MODE_SYMLINK, _MODE_DEVICE, _MODE_FIFO = 1 << 31, 1 << 27, 1 << 26, 1 << 25
_MODE_SOCKET, _MODE_SETUID, _MODE_SETGID, _MODE_CHARDEV, _MODE_STICKY = 1 << 24, 1 << 23, 1 << 22, 1 << 21, 1 << 20
_TYPE_BITS = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: _MODE_DIR,
    stat.S_IFLNK: _MODE_SYMLINK,
    stat.S_IFBLK: _MODE_DEVICE,
    stat.S_IFCHR: _MODE_DEVICE | _MODE_CHARDEV,
    stat.S_IFIFO: _MODE_FIFO,
    stat.S_IFSOCK: _MODE_SOCKET,
}
_SPECIAL_BITS = ((stat.S_ISUID, _MODE_SETUID), (stat.S_ISGID, _MODE_SETGID), (stat.S_ISVTX, _MODE_STICKY))


class NodeType(StrEnum):
    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    DEV = "dev"
    CHARDEV = "chardev"
    FIFO = "fifo"
    SOCKET = "socket"


_FORMAT_BITS = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIR: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.DEV: stat.S_IFBLK,
    NodeType.CHARDEV: stat.S_IFCHR,
    NodeType.FIFO: stat.S_IFIFO,
    NodeType.SOCKET: stat.S_IFSOCK,
}
_LINKED = frozenset({NodeType.FILE, NodeType.SYMLINK, NodeType.DEV, NodeType.CHARDEV})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One entry of a directory. Names, link targets and attributes are raw bytes; times are nanoseconds since the
    epoch; `mode` has Go's FileMode bits; ids are 32 bytes. `content` is None for everything but files."""

    name: bytes
    type: NodeType
    mode: int
    mtime: int
    atime: int
    ctime: int
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    inode: int = 0
    device_id: int = 0
    size: int = 0
    links: int = 0
    linktarget: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    device: int = 0
    content: tuple[bytes, ...] | None = None
    subtree: bytes | None = None
    error: str = ""

    @property
    def unix_mode(self) -> int:
        """`mode` as st_mode: the format bits of `type`, permissions, set-id and sticky bits."""
        special = sum(unix for unix, go in _SPECIAL_BITS if self.mode & go)
        return _FORMAT_BITS[self.type] | special | (self.mode & 0o777)


def go_mode(st_mode: int) -> int:
    """st_mode as Go's FileMode bits."""
    special = 0
    if st_mode & 0o7000:
        special = sum(go for unix, go in _SPECIAL_BITS if st_mode & unix)
    return _TYPE_BITS[stat.S_IFMT(st_mode)] | special | (st_mode & 0o777)


def encode_node(node: Node) -> bytes:
    """The JSON object of one entry."""
    mtime = format_time(node.mtime)
    atime = mtime if node.atime == node.mtime else format_time(node.atime)
    parts = [
        f'{{"name":{quote_name(node.name)},"type":"{node.type.value}"',
        f',"mode":{node.mode}' if node.mode else "",
        f',"mtime":"{mtime}","atime":"{atime}","ctime":"{format_time(node.ctime)}","uid":{node.uid},"gid":{node.gid}',
        f',"user":{json_string(node.user)}' if node.user else "",
        f',"group":{json_string(node.group)}' if node.group else "",
        f',"inode":{node.inode}' if node.inode else "",
        f',"device_id":{node.device_id}' if node.device_id else "",
        f',"size":{node.size}' if node.size else "",
        f',"links":{node.links}' if node.links and node.type in _LINKED else "",
    ]
    if node.linktarget:
        parts.append(_encode_target(node.linktarget))
    if node.xattrs:
        parts.append(_encode_xattrs(node.xattrs))
    if node.device:
        parts.append(f',"device":{node.device}')
    parts.append(_encode_content(node.content))
    if node.subtree is not None:
        parts.append(f',"subtree":"{node.subtree.hex()}"')
    if node.error:
        parts.append(f',"error":{json_string(node.error)}')
    parts.append("}")
    return "".join(parts).encode()


def join_nodes(nodes: Iterable[bytes]) -> bytes:
    """A tree of encoded nodes, which are in the order of their names."""
    return b'{"nodes":[' + b",".join(nodes) + b"]}\n"


def encode_tree(nodes: Iterable[Node]) -> bytes:
    """The plaintext of a tree blob; nodes in any order, no name twice."""
    return join_nodes(encode_node(node) for node in sorted(nodes, key=lambda node: node.name))


def parse_tree(plaintext: bytes) -> tuple[Node, ...]:
    """The entries of a tree blob, sorted by name. Raises DataDamaged."""
    try:
        nodes = [_parse_node(document) for document in json.loads(plaintext)["nodes"] or ()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None
    nodes.sort(key=lambda node: node.name)
    for one, other in itertools.pairwise(nodes):
        if one.name == other.name:
            raise DataDamaged(f"a tree names {one.name!r} twice")
    return tuple(nodes)


def _encode_content(content: tuple[bytes, ...] | None) -> str:
    if content is None:
        return ',"content":null'
    return ',"content":[' + ",".join([f'"{blob.hex()}"' for blob in content]) + "]"


def _encode_target(target: bytes) -> str:
    text = f',"linktarget":{json_string(target.decode("utf-8", "surrogateescape"))}'
    try:
        target.decode("utf-8")
    except UnicodeDecodeError:
        text += f',"linktarget_raw":"{base64.b64encode(target).decode()}"'
    return text


def _encode_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> str:
    items = []
    for name, value in xattrs:
        quoted = json_string(name.decode("utf-8", "surrogateescape"))
        items.append(f'{{"name":{quoted},"value":"{base64.b64encode(value).decode()}"}}')
    return f',"extended_attributes":[{",".join(items)}]'


def _parse_node(document: dict[str, Any]) -> Node:
    get = document.get
    name = unquote_name(document["name"])
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"an entry cannot have the name {name!r}")
    raw_target = get("linktarget_raw")
    content = get("content")
    subtree = get("subtree")
    node = Node(
        name=name,
        type=NodeType(document["type"]),
        mode=get("mode", 0),
        mtime=parse_time(document["mtime"]),
        atime=parse_time(document["atime"]),
        ctime=parse_time(document["ctime"]),
        uid=get("uid", 0),
        gid=get("gid", 0),
        user=get("user", ""),
        group=get("group", ""),
        inode=get("inode", 0),
        device_id=get("device_id", 0),
        size=get("size", 0),
        links=get("links", 0),
        linktarget=base64.b64decode(raw_target) if raw_target else get("linktarget", "").encode("utf-8"),
        xattrs=tuple(
            (attribute["name"].encode("utf-8"), base64.b64decode(attribute["value"] or ""))
            for attribute in get("extended_attributes") or ()
        ),
        device=get("device", 0),
        content=None if content is None else tuple([_blob_id(text) for text in content]),
        subtree=None if subtree is None else _blob_id(subtree),
        error=get("error", ""),
    )
    for number in (node.mode, node.uid, node.gid, node.inode, node.device_id, node.size, node.links, node.device):
        if not isinstance(number, int) or not 0 <= number < 1 << 64:
            raise ValueError("a number out of range")
    if not all(isinstance(text, str) for text in (node.user, node.group, node.error)):
        raise ValueError("a text that is none")
    if not isinstance(content, (list, NoneType)):
        raise ValueError("a content that is no list")
    return node


def _blob_id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 32:
        raise ValueError("an id of the wrong length")
    return value
