"""A share as file servers give it: a folder served through /dev/fuse, without links, modes and extended attributes, and
sometimes without anything at all. Run as a program of its own, so that it can be killed: `share.py FOLDER MOUNT-POINT`.

What a file is called says what becomes of it: `vanishing` is listed and not found, `failing` cannot be read, `growing`
and `shrinking` do so when they are first read after an open. SIGUSR1 makes every answer ESTALE, as of a server that
has come back as another one; SIGUSR2 ends that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_MODE, _SIZE = 1, 8  # bits of a change of attributes
_FORGET, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 2, 26, 36, 38, 42
_READ_BYTES, _WRITE_BYTES = 1 << 18, 1 << 17
_NEVER_ANSWERED = (_FORGET, _INTERRUPT, _DESTROY, _BATCH_FORGET)


class Refused(OSError):
    """An answer with an error number."""


class Folder:
    """Requests of the kernel, done in a folder."""

    def __init__(self, root: bytes) -> None:
        self._paths: dict[int, bytes] = {1: root}
        self._numbers: dict[bytes, int] = {root: 1}
        self._unsteady: set[int] = set()  # open files that have grown or shrunk
        self.stale = False
        self._requests: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup, 3: self._getattr, 4: self._setattr, 9: self._mkdir, 10: self._unlink, 11: self._rmdir,
            12: self._rename, 14: self._open, 15: self._read, 16: self._write, 17: self._statfs, 18: self._release,
            20: self._fsync, 25: self._nothing, _INIT: self._init, 27: self._nothing16, 28: self._readdir,
            29: self._nothing, 30: self._fsyncdir, 34: self._nothing, 35: self._create, 45: self._rename2,
        }  # fmt: skip

    def answer(self, request: bytes) -> bytes | None:
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        if operation in _NEVER_ANSWERED:
            return None
        error, body = 0, b""
        try:
            if self.stale and operation != _INIT:
                raise Refused(errno.ESTALE, "")
            body = self._requests.get(operation, _refuse)(node, request[_IN.size :])
        except OSError as told:
            error = -(told.errno or errno.EIO)
        return _OUT.pack(_OUT.size + len(body), error, unique) + body

    def _below(self, node: int, name: bytes) -> bytes:
        return self._paths[node] + b"/" + name.partition(b"\0")[0]

    def _attr(self, path: bytes | int) -> bytes:
        status = os.stat(path, follow_symlinks=False) if isinstance(path, bytes) else os.fstat(path)  # noqa: PTH116
        seconds, parts = zip(
            *(divmod(ns, 10**9) for ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)), strict=True
        )
        return _ATTR.pack(
            status.st_ino, status.st_size, status.st_blocks, *seconds, *parts,
            status.st_mode | 0o700, status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _entry(self, path: bytes) -> bytes:
        attr = self._attr(path)
        number = self._numbers.setdefault(path, len(self._paths) + 1)
        self._paths[number] = path
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attr

    def _lookup(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body)
        if path.endswith(b"/vanishing"):
            raise Refused(errno.ENOENT, "")
        return self._entry(path)

    def _getattr(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attr(self._paths[node])

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & _MODE:
            raise Refused(errno.ENOTSUP, "no modes here")
        if valid & _SIZE:
            os.truncate(self._paths[node], size)
        return self._getattr(node, b"")

    def _mkdir(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body[8:])
        os.mkdir(path)  # noqa: PTH102
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(self._below(node, body))  # noqa: PTH108
        return b""

    def _rmdir(self, node: int, body: bytes) -> bytes:
        os.rmdir(self._below(node, body))  # noqa: PTH106
        return b""

    def _rename(self, node: int, body: bytes, names_at: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new = body[names_at:].split(b"\0")[:2]
        before, after = self._below(node, old), self._below(target, new)
        os.rename(before, after)  # noqa: PTH104
        if (number := self._numbers.pop(before, None)) is not None:
            self._numbers[after], self._paths[number] = number, after
        return b""

    def _rename2(self, node: int, body: bytes) -> bytes:
        return self._rename(node, body, 16)

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        return struct.pack("<QII", os.open(self._paths[node], flags & ~os.O_NOFOLLOW), 0, 0)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self._below(node, body[16:])
        handle = os.open(path, flags | os.O_CREAT, mode)
        return self._entry(path) + struct.pack("<QII", handle, 0, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        data = os.pread(handle, size, offset)
        path = self._paths[node]
        if path.endswith(b"/failing"):
            raise Refused(errno.EIO, "")
        if handle not in self._unsteady and path.endswith((b"/growing", b"/shrinking")):
            self._unsteady.add(handle)
            length = os.fstat(handle).st_size
            os.truncate(path, length + 1000 if path.endswith(b"/growing") else length - 1000)
        return data

    def _write(self, _: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def _release(self, _: int, body: bytes) -> bytes:
        (handle,) = struct.unpack_from("<Q", body)
        self._unsteady.discard(handle)
        os.close(handle)
        return b""

    def _fsync(self, _: int, body: bytes) -> bytes:
        os.fsync(*struct.unpack_from("<Q", body))
        return b""

    def _fsyncdir(self, _: int, body: bytes) -> bytes:
        raise Refused(errno.EINVAL, "a directory cannot be synced here")

    def _statfs(self, node: int, _: bytes) -> bytes:
        n = os.statvfs(self._paths[node])
        numbers = (n.f_blocks, n.f_bfree, n.f_bavail, n.f_files, n.f_ffree, n.f_bsize, 255, n.f_frsize)
        return struct.pack("<5Q10I", *numbers, *[0] * 7)

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        listing = b""
        for number, name in enumerate([b".", b"..", *sorted(os.listdir(self._paths[node]))][offset:], offset + 1):  # noqa: PTH208
            entry = struct.pack("<QQII", 1, number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return listing

    def _nothing(self, _node: int, _body: bytes) -> bytes:
        return b""

    def _nothing16(self, _node: int, _body: bytes) -> bytes:
        return bytes(16)

    def _init(self, _node: int, body: bytes) -> bytes:
        ahead = struct.unpack_from("<III", body)[2]
        return struct.pack("<IIIIHHIIHH8I", 7, 31, ahead, 1 << 5, 12, 9, _WRITE_BYTES, 1, 0, 0, *[0] * 8)


def _refuse(_node: int, _body: bytes) -> bytes:
    raise Refused(errno.EOPNOTSUPP, "links, xattrs and all else")


def serve(folder: Path, point: Path) -> None:
    served = Folder(os.fsencode(folder))
    signal.signal(signal.SIGUSR1, lambda *_: setattr(served, "stale", True))
    signal.signal(signal.SIGUSR2, lambda *_: setattr(served, "stale", False))
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other"
    subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "share", point], check=True, pass_fds=[device])
    while True:
        try:
            request = os.read(device, _READ_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            continue
        reply = served.answer(request)
        if reply is not None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                os.write(device, reply)


class Share:
    """A share mounted at `point`, served by a process of its own."""

    def __init__(self, folder: Path, point: Path) -> None:
        self._folder, self.point = folder, point
        for path in (folder, point):
            path.mkdir(parents=True, exist_ok=True)
        self.mount()

    def mount(self) -> None:
        self._server = subprocess.Popen([sys.executable, __file__, self._folder, self.point])
        deadline = time.monotonic() + 20
        while not self.point.is_mount():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def vanish(self) -> None:
        """The server is gone, and the mount point answers nothing but errors."""
        self._server.kill()
        self._server.wait()

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.point], check=False, capture_output=True)
        self._server.wait(20)

    def become_stale(self) -> None:
        self._server.send_signal(signal.SIGUSR1)

    def recover(self) -> None:
        self._server.send_signal(signal.SIGUSR2)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
