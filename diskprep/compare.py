"""Fingerprints of directory trees: the independent witness of a rehearsal.

It reads the trees with its own code and shares none with what backs them up or restores them, so that an error there
cannot hide itself here. Times are nanoseconds, paths are bytes relative to the root (`b""` is the root itself).
Left out is what the repository format cannot keep: sockets, attributes whose names are not UTF-8, and which FIFOs are
hard links of each other.
"""

# Names need not be text, so paths are bytes here, which pathlib does not take.
# ruff: noqa: PTH115, PTH116

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from diskprep.errors import StorageUnavailable
from diskprep.reach import reachable

_READ_BYTES = 1 << 20
_BATCH_FILES, _BATCH_BYTES = 256, 64 << 20
_XATTR_PREFIXES = ("user.", "system.posix_acl_", "security.capability")


class EntryType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    FIFO = "fifo"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"


_TYPES = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFIFO: EntryType.FIFO,
    stat.S_IFCHR: EntryType.CHARACTER_DEVICE,
    stat.S_IFBLK: EntryType.BLOCK_DEVICE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a tree. `mode` are the permission bits (07777), `size_bytes` and `sha256` are of files only.

    `linked_with` is the first path of the entry's group of hard links inside the tree, None when it is alone.
    `xattrs` is None where the file system has none or does not let us look.
    """

    type: EntryType
    mode: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    size_bytes: int = 0
    sha256: bytes | None = None
    target: bytes | None = None
    device: int | None = None
    linked_with: bytes | None = None
    xattrs: tuple[tuple[str, bytes], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """All entries of a tree; `unreadable` says for paths that could not be read (wholly) why."""

    root: Path
    entries: Mapping[bytes, Entry]
    unreadable: Mapping[bytes, str]


def fingerprint(root: Path, *, contents: bool = True) -> Fingerprint:
    """Read the tree below `root`, two files at a time. Without `contents` only metadata: enough for `changed`.

    Memory: about 0.6 KB per entry. Raises StorageUnavailable when `root` itself cannot be read.
    """
    entries: dict[bytes, Entry] = {}
    unreadable: dict[bytes, str] = {}
    first_of: dict[tuple[int, int], list[bytes]] = {}
    top = os.fsencode(root)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: list[Future[dict[bytes, bytes | OSError]]] = []
        batch: list[bytes] = []
        batch_bytes = 0
        for path, status in _walk(top, unreadable):
            try:
                with reachable(top, path) as place:
                    entry = _entry(place, status)
            except OSError as error:  # gone meanwhile
                unreadable[path] = error.strerror or str(error)
                continue
            if entry is None:
                continue
            entries[path] = entry
            if entry.type not in (EntryType.DIRECTORY, EntryType.FIFO) and status.st_nlink > 1:
                first_of.setdefault((status.st_dev, status.st_ino), []).append(path)
            if contents and entry.type is EntryType.FILE:
                batch.append(path)
                batch_bytes += entry.size_bytes
                if len(batch) >= _BATCH_FILES or batch_bytes >= _BATCH_BYTES:
                    waiting.append(pool.submit(_hash_files, top, batch))
                    batch, batch_bytes = [], 0
        waiting.append(pool.submit(_hash_files, top, batch))
        for future in waiting:
            for path, found in future.result().items():
                if isinstance(found, OSError):
                    unreadable[path] = found.strerror or str(found)
                else:
                    entries[path] = replace(entries[path], sha256=found)
    for group in first_of.values():
        for path in group if len(group) > 1 else ():
            entries[path] = replace(entries[path], linked_with=min(group))
    return Fingerprint(root=root, entries=entries, unreadable=unreadable)


def _walk(top: bytes, unreadable: dict[bytes, str]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path below `top` and `top` itself with its lstat, without following links."""
    try:
        yield b"", os.stat(top)
    except OSError as error:
        raise StorageUnavailable(f"cannot read {os.fsdecode(top)}: {error.strerror}") from None
    pending = [b""]
    while pending:
        directory = pending.pop()
        try:
            with reachable(top, directory) as place, os.scandir(place) as found:
                names = sorted(entry.name for entry in found)
        except OSError as error:
            unreadable[directory] = error.strerror or str(error)
            continue
        for name in names:
            path = directory + b"/" + name if directory else name
            try:
                with reachable(top, path) as place:
                    status = os.lstat(place)
            except OSError as error:
                unreadable[path] = error.strerror or str(error)
                continue
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)


def _entry(path: bytes, status: os.stat_result) -> Entry | None:
    """What lstat and the extended attributes tell; None for what is left out."""
    kind = _TYPES.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    target = None
    if kind is EntryType.SYMLINK:
        with contextlib.suppress(OSError):
            target = os.readlink(path)
    is_device = kind in (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
    return Entry(
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        size_bytes=status.st_size if kind is EntryType.FILE else 0,
        target=target,
        device=status.st_rdev if is_device else None,
        xattrs=_xattrs(path),
    )


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...] | None:
    try:
        names = [n for n in os.listxattr(path, follow_symlinks=False) if n.startswith(_XATTR_PREFIXES) and _is_text(n)]
        return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
    except OSError:
        return None


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _hash_files(top: bytes, paths: list[bytes]) -> dict[bytes, bytes | OSError]:
    """SHA-256 of the files' contents, or what prevented it."""
    buffer = memoryview(bytearray(_READ_BYTES))
    found: dict[bytes, bytes | OSError] = {}
    for path in paths:
        try:
            with reachable(top, path) as place:
                found[path] = _hash_file(place, buffer)
        except OSError as error:
            found[path] = error
    return found


def _hash_file(path: bytes, buffer: memoryview) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ESTALE, "it was a file and is one no more")
        digest = hashlib.sha256()
        while count := os.readv(descriptor, [buffer]):
            digest.update(buffer[:count])
        return digest.digest()
    finally:
        os.close(descriptor)


def changed(before: Fingerprint, after: Fingerprint) -> frozenset[bytes]:
    """Paths that came, went, or whose type, size or time of change is another: what a live tree did in between."""
    paths = before.entries.keys() | after.entries.keys()
    return frozenset(path for path in paths if _moved(before.entries.get(path), after.entries.get(path)))


def _moved(before: Entry | None, after: Entry | None) -> bool:
    if before is None or after is None:
        return True
    return (before.type, before.size_bytes, before.ctime_ns) != (after.type, after.size_bytes, after.ctime_ns)


def differences(
    expected: Fingerprint, found: Fingerprint, *, limit: int = 20, ignore: Collection[bytes] = ()
) -> list[str]:
    """Where `found` is not what was `expected`, a line for each entry, in the order of the paths; empty: equal.

    At most `limit` lines and one that counts the rest. Owners are compared only when running as root. A path in
    `ignore` is not compared; a file that was unreadable on the expected side is compared but for its contents.
    """
    owners = os.geteuid() == 0
    lines = []
    left_out = frozenset(ignore)
    for path in sorted((expected.entries.keys() | found.entries.keys()) - left_out):
        words = _difference(expected.entries.get(path), found.entries.get(path), owners=owners, left_out=left_out)
        if path in found.unreadable and path not in expected.unreadable:
            words.append(f"cannot be read: {found.unreadable[path]}")
        if words:
            lines.append(f"{display(path)}: {'; '.join(words)}")
    if len(lines) > limit:
        lines[limit:] = [f"... and {len(lines) - limit} more"]
    return lines


def _difference(want: Entry | None, have: Entry | None, *, owners: bool, left_out: frozenset[bytes]) -> list[str]:
    if want is None or have is None:
        return ["is missing" if have is None else "should not be there"]
    if want.type is not have.type:
        return [f"is a {have.type}, not a {want.type}"]
    words = []
    if want.size_bytes != have.size_bytes:
        words.append(f"has {have.size_bytes} bytes, not {want.size_bytes}")
    elif want.sha256 and have.sha256 and want.sha256 != have.sha256:
        words.append("has other contents")
    if want.target != have.target:
        words.append(f"points to {display(have.target or b'')}, not to {display(want.target or b'')}")
    if want.device != have.device:
        words.append(f"has device number {have.device}, not {want.device}")
    if want.type is not EntryType.SYMLINK and want.mode != have.mode:
        words.append(f"has mode {have.mode:04o}, not {want.mode:04o}")
    if want.mtime_ns != have.mtime_ns:
        words.append(f"was last modified {(have.mtime_ns - want.mtime_ns) / 1e9:+.9f} s from what it should be")
    if owners and (want.uid, want.gid) != (have.uid, have.gid):
        words.append(f"belongs to {have.uid}:{have.gid}, not to {want.uid}:{want.gid}")
    if want.linked_with != have.linked_with and not {want.linked_with, have.linked_with} & left_out:
        words.append(f"is linked with {_linked(have)}, not with {_linked(want)}")
    if want.xattrs is not None and have.xattrs is not None and want.xattrs != have.xattrs:
        names = sorted({name for name, _ in set(want.xattrs) ^ set(have.xattrs)})
        words.append(f"has other extended attributes: {', '.join(names)}")
    return words


def _linked(entry: Entry) -> str:
    return "nothing" if entry.linked_with is None else display(entry.linked_with)


def display(path: bytes) -> str:
    """`path` for a person: bytes that are not text or not printable are escaped; the root is a dot."""
    text = os.fsdecode(path) or "."
    return text if text.isprintable() else ascii(text)[1:-1]
