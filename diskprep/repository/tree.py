"""Trees: directory listings, written so that restic would write the same bytes, and so finds nothing to add later.

    {"nodes":[ nodes joined by , ]} LF        sorted by the raw bytes of the names, no name twice

Invariants: `parse_tree` hands out no name that could lead out of its directory; `encode_tree(parse_tree(x)) == x` for
trees written in this zone on a POSIX system.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple

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
_NODES_A_PART = 8192
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


@lru_cache(maxsize=4096)
def go_mode(st_mode: int) -> int:
    """st_mode as Go's FileMode bits."""
    special = 0
    if st_mode & 0o7000:
        special = sum(go for unix, go in _SPECIAL_BITS if st_mode & unix)
    return _TYPE_BITS[stat.S_IFMT(st_mode)] | special | (st_mode & 0o777)


@lru_cache(maxsize=4096)
def encode_owner(uid: int, gid: int, user: str, group: str) -> str:
    """The part of an entry's text that tells its owner; empty names are left out."""
    user_text = f',"user":{json_string(user)}' if user else ""
    group_text = f',"group":{json_string(group)}' if group else ""
    return f'"uid":{uid},"gid":{gid}{user_text}{group_text}'


def encode_file(  # the same text as `encode_node` gives, without a Node: this runs once for every file of a source
    name: bytes,
    status: os.stat_result,
    *,
    owner: str,
    xattrs: tuple[tuple[bytes, bytes], ...],
    content: tuple[bytes, ...],
    size_bytes: int,
) -> bytes:
    """The JSON object of a regular file. `owner` is of `encode_owner`; `size_bytes` and `content` are what was read."""
    mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
    mtime = format_time(mtime_ns)
    ctime = mtime if ctime_ns == mtime_ns else format_time(ctime_ns)
    inode, device_id, links = status.st_ino, status.st_dev, status.st_nlink
    mode = go_mode(status.st_mode)
    more = _encode_xattrs(xattrs) if xattrs else ""
    ids = f'"{content[0].hex()}"' if len(content) == 1 else _encode_ids(content)
    if not (mode and inode and device_id and size_bytes and links):  # zeros are left out
        head = _encode_head(name, "file", mode, (mtime, mtime, ctime))
        return f'{head}{owner}{_encode_numbers(inode, device_id, size_bytes, links)}{more},"content":[{ids}]}}'.encode()
    return (
        f'{{"name":{quote_name(name)},"type":"file","mode":{mode},"mtime":"{mtime}","atime":"{mtime}","ctime":"{ctime}",'
        f'{owner},"inode":{inode},"device_id":{device_id},"size":{size_bytes},"links":{links}{more},"content":[{ids}]}}'
    ).encode()


def encode_node(node: Node) -> bytes:
    """The JSON object of one entry."""
    mtime = format_time(node.mtime)
    atime = mtime if node.atime == node.mtime else format_time(node.atime)
    parts = [
        _encode_head(node.name, node.type.value, node.mode, (mtime, atime, format_time(node.ctime))),
        encode_owner(node.uid, node.gid, node.user, node.group),
        _encode_numbers(node.inode, node.device_id, node.size, node.links if node.type in _LINKED else 0),
    ]
    if node.linktarget:
        parts.append(_encode_target(node.linktarget))
    if node.xattrs:
        parts.append(_encode_xattrs(node.xattrs))
    if node.device:
        parts.append(f',"device":{node.device}')
    parts.append(',"content":null' if node.content is None else f',"content":[{_encode_ids(node.content)}]')
    if node.subtree is not None:
        parts.append(f',"subtree":"{node.subtree.hex()}"')
    if node.error:
        parts.append(f',"error":{json_string(node.error)}')
    parts.append("}")
    return "".join(parts).encode()


def _is_time(text: str, time_ns: int) -> bool:
    if text == format_time(time_ns):
        return True
    try:
        return parse_time(text) == time_ns  # it may have been written in another zone
    except (ValueError, TypeError):
        return False


def _encode_head(name: bytes, kind: str, mode: int, times: tuple[str, str, str]) -> str:
    mtime, atime, ctime = times
    mode_text = f',"mode":{mode}' if mode else ""
    return (
        f'{{"name":{quote_name(name)},"type":"{kind}"{mode_text},"mtime":"{mtime}","atime":"{atime}","ctime":"{ctime}",'
    )


def _encode_numbers(inode: int, device_id: int, size: int, links: int) -> str:
    fields = (("inode", inode), ("device_id", device_id), ("size", size), ("links", links))
    return "".join([f',"{name}":{value}' for name, value in fields if value])


def _encode_ids(content: tuple[bytes, ...]) -> str:
    return ",".join([f'"{blob.hex()}"' for blob in content])


def tree_parts(nodes: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces of a tree of encoded nodes, which are in the order of their names; joined they are its plaintext."""
    yield b'{"nodes":['
    for start in range(0, len(nodes), _NODES_A_PART):
        yield (b"," if start else b"") + b",".join(nodes[start : start + _NODES_A_PART])
    yield b"]}\n"


def join_nodes(nodes: Sequence[bytes]) -> bytes:
    """A tree of encoded nodes, which are in the order of their names."""
    return b"".join(tree_parts(nodes))


def encode_tree(nodes: Iterable[Node]) -> bytes:
    """The plaintext of a tree blob; nodes in any order, no name twice."""
    return join_nodes([encode_node(node) for node in sorted(nodes, key=lambda node: node.name)])


class BaseFile(NamedTuple):
    """What a later backup needs of a file: the times are as the tree spells them, `content` holds the chunks' ids."""

    size: int
    mtime: str
    ctime: str
    inode: int
    content: tuple[bytes, ...]

    def has_times(self, mtime_ns: int, ctime_ns: int | None) -> bool:
        """Whether these are its times, in nanoseconds; `ctime_ns` None: any will do."""
        return _is_time(self.mtime, mtime_ns) and (ctime_ns is None or _is_time(self.ctime, ctime_ns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A directory of an earlier snapshot: its files and the trees of its directories, by name."""

    files: Mapping[bytes, BaseFile] = field(default_factory=dict)
    subtrees: Mapping[bytes, bytes] = field(default_factory=dict)


def parse_base(plaintext: bytes) -> Base:
    """What a later backup needs of a tree blob, read entry by entry. Raises DataDamaged."""
    files: dict[bytes, BaseFile] = {}
    subtrees: dict[bytes, bytes] = {}
    try:
        text = plaintext.decode()
        decode = json.JSONDecoder().raw_decode
        position = text.index("[") + 1
        while text[position] == "{":
            document, position = decode(text, position)
            kind, name = document["type"], unquote_name(document["name"])
            if kind == "file":
                content = tuple([_blob_id(blob) for blob in document["content"] or ()])
                size, inode = document.get("size", 0), document.get("inode", 0)
                files[name] = BaseFile(size, document["mtime"], document["ctime"], inode, content)
            elif kind == "dir" and document.get("subtree"):
                subtrees[name] = _blob_id(document["subtree"])
            position += text[position] == ","
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None
    return Base(files=files, subtrees=subtrees)


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
