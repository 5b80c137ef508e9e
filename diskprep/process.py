"""The door to other programs: every child process of diskprep starts here.

Children get a fixed PATH, a clean environment, no terminal input, and never a secret in argv or environment. The one
exception is a program that the user named to tell a secret: it runs as the user would run it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterable, Sequence

from diskprep import errors
from diskprep.errors import DiskprepError, StorageUnavailable, ToolMissing, UsageError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

#: program -> Debian package that has it
PACKAGES = {
    "fallocate": "util-linux",
    "mkntfs": "ntfs-3g",
    "blkdiscard": "util-linux",
    "smartctl": "smartmontools",
    "lvcreate": "lvm2",
    "lvremove": "lvm2",
    "lvs": "lvm2",
    "mount": "mount",
    "sync": "coreutils",
    "umount": "mount",
    "zfs": "zfsutils-linux",
}


def find(program: str) -> str | None:
    """Absolute path of `program` on the fixed search path, or None."""
    return shutil.which(program, path=SEARCH_PATH)


def require(program: str) -> str:
    """Absolute path of `program`; raises ToolMissing with the Debian package to install."""
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise ToolMissing(f"the program {program} is missing", hint=f"apt-get install {package}")
    return path


def run(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    timeout_s: float = 600.0,
    own_session: bool = False,
    errors_apart: bool = False,
) -> str:
    """Run `argv[0]` (looked up by `require`) to its end and return what it printed on both streams.

    `own_session`: Ctrl-C at the terminal does not reach it. `errors_apart`: return what it printed on stdout only.

    Raises ToolMissing when it does not exist and DiskprepError when it fails or outlasts `timeout_s`.
    """
    program = require(argv[0])
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if errors_apart else subprocess.STDOUT,
            env=_ENVIRONMENT,
            pass_fds=tuple(pass_fds),
            timeout=timeout_s,
            check=False,
            text=True,
            errors="replace",
            start_new_session=own_session,
        )
    except subprocess.TimeoutExpired:
        raise DiskprepError(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise DiskprepError(f"cannot start {program}: {error.strerror}") from error
    if done.returncode:
        told = (done.stderr if errors_apart else done.stdout).strip()[-2000:]
        raise DiskprepError(f"{argv[0]} failed with exit status {done.returncode}: {told}")
    return done.stdout


class Companion:
    """A child process in a session of its own that serves this one, told and asked by lines."""

    def __init__(self, argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> None:
        """Start it. Raises ToolMissing or DiskprepError."""
        program = require(argv[0])
        try:
            self._child = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            raise DiskprepError(f"cannot start {program}: {error.strerror}") from error
        self._told = b""

    def line(self, timeout_s: float) -> str | None:
        """The next line it prints, without its end; "" when it has ended, None when none came for `timeout_s`."""
        assert self._child.stdout is not None
        while b"\n" not in self._told:
            if not select.select([self._child.stdout], [], [], timeout_s)[0]:
                return None
            more = os.read(self._child.stdout.fileno(), 4096)
            if not more:
                return ""
            self._told += more
        line, _, self._told = self._told.partition(b"\n")
        return line.decode("utf-8", "replace")

    def tell(self, line: str) -> None:
        """Write a line to it; one that is gone hears nothing."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self._child.stdin.fileno(), line.encode() + b"\n")

    def end(self, timeout_s: float) -> None:
        """Wait for its end, and kill it when that does not come."""
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()


def ask(argv: Sequence[str], what: str, *, limit_bytes: int) -> bytes:
    """What a program of the user's prints on stdout; looked up on their PATH, with their environment and terminal.

    Raises UsageError when it cannot be started, fails, or prints more than `limit_bytes`. Messages call it `what`: they
    have neither its output nor its arguments.
    """
    try:
        child = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its arguments are malformed"
        raise UsageError(f"{what} cannot be started: {reason}") from None
    with child:
        try:
            assert child.stdout is not None
            told = child.stdout.read(limit_bytes + 1)
            if len(told) > limit_bytes:
                raise UsageError(f"{what} prints more than {limit_bytes} bytes")
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise UsageError(f"{what} failed with exit status {child.returncode}")
    return told


def fork(run: Callable[[socket.socket], None], *, close: Iterable[socket.socket] = ()) -> tuple[int, socket.socket]:
    """Start a child with a copy of this process's memory that calls `run` with one end of a socket and then ends;
    returns its process id and the other end. `close`: sockets that it must not keep open. Raises OSError.

    Signals from the terminal are for the parent alone: the child ignores them and ends when its socket is closed.
    """
    ours, theirs = socket.socketpair()
    # Held back until the child ignores them: the parent's handler must not run there, in a copy of the parent's calls.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    pid = -1
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        raise
    finally:
        if pid:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return pid, ours
    status = 1
    try:
        for number in _FOR_THE_PARENT:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        gc.freeze()  # what the parent has is not looked through, nor copied by that, in every child
        gc.disable()  # a child makes no cycles worth the looking
        for end in (ours, *close):
            end.close()
        run(theirs)
        status = 0
    finally:
        os._exit(status)  # nothing that the parent has set up for its own end may run here


def receive_exactly(end: socket.socket, length: int) -> bytes:
    """`length` bytes. Raises ConnectionError when the other side is gone."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = end.recv_into(view)
        if not count:
            raise ConnectionResetError
        view = view[count:]
    return bytes(data)


def wait(pid: int) -> None:
    """Wait for the end of a child that `fork` started."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def ended_early(pid: int) -> StorageUnavailable:
    """The error for a worker that `fork` started and whose socket is closed before it has answered."""
    return StorageUnavailable(
        f"the worker process {pid} has ended before its work was done",
        hint="it may have been killed, or memory ran out (see dmesg); give the same command again",
    )


def describe_error(error: BaseException) -> bytes:
    """An error as a forked child tells it to its parent."""
    if isinstance(error, DiskprepError):
        known = next(kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
        fields = (known.__name__, error.message, error.hint)
    else:  # a traceback's text has no values of variables
        fields = ("", "".join(traceback.format_exception(error)), "")
    return "\0".join(field.replace("\0", "") for field in fields).encode("utf-8", "backslashreplace")


def revive_error(text: bytes) -> Exception:
    """What `describe_error` told, to be raised; RuntimeError where it was none of ours."""
    name, message, hint = text.decode().split("\0")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, DiskprepError):
        return kind(message, hint=hint)
    return RuntimeError(f"a worker process failed:\n{message}")
