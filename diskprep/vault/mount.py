"""Mounting a vault: its recovery points as a read-only file system, served in the foreground.

The repository is locked, not exclusively, while it is mounted: others write, nobody prunes. Ended by `umount`, Ctrl-C,
SIGTERM or SIGHUP, the mount point is free again; programs that still use files there get errors. After a kill -9 the
mount point is a stale mount, which the next mount there tells.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from diskprep import durable, process
from diskprep.errors import StorageUnavailable, ToolMissing, UsageError
from diskprep.events import Emit
from diskprep.repository.repository import Repository
from diskprep.store.directory import DirectoryStore
from diskprep.vault.browse import CACHE_BYTES, Browser

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENDED = 7  # this and what is above it is libfuse's number for a mount that was there and ended other than by umount
_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")
_LIBRARY_VARIABLE = "FUSE_LIBRARY_PATH"
_REQUESTS = 8  # a network wants more of them under way than there are cores
_DEVICE = Path("/dev/fuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """`allow_other`: all users of the computer see the mount; then `check_permissions` has the kernel hold them to the
    modes and owners of the files. `lock`: without it somebody may prune what is being read."""

    allow_other: bool = False
    check_permissions: bool = True
    lock: bool = True
    cache_bytes: int = CACHE_BYTES


def mount(
    repository: Repository, mountpoint: Path, options: MountOptions, *, ready: Callable[[int], None], emit: Emit
) -> None:
    """Show the recovery points below `mountpoint`, an empty directory, until the mount is ended.

    `ready` is called from another thread when it is there, with the number of recovery points. Raises UsageError,
    ToolMissing, Locked, StorageUnavailable, or DataDamaged for index and snapshot files.
    """
    check_mountpoint(mountpoint, repository)
    bridge = load_bridge()
    cores = os.cpu_count() or 1
    threads = cores if isinstance(repository.store, DirectoryStore) else max(_REQUESTS, cores)
    with (
        repository.lock() if options.lock else contextlib.nullcontext(),
        ThreadPoolExecutor(threads, initializer=_block_signals) as pool,
    ):
        browser = Browser(repository, pool, cache_bytes=options.cache_bytes, emit=emit)
        mounted = False

        def tell() -> None:
            nonlocal mounted
            mounted = True
            ready(browser.points)

        settings = {
            "ro": True,
            "fsname": f"diskprep-{repository.id[:8]}",
            "subtype": "diskprep",
            "allow_other": options.allow_other,
            "default_permissions": options.allow_other and options.check_permissions,
        }
        try:
            with _signals_for_libfuse():
                bridge.Bridge(browser, os.fspath(mountpoint), ready=tell, options=settings)
        except RuntimeError as error:
            if not (mounted and error.args[0] >= _ENDED):
                hint = "libfuse said why above"
                if options.allow_other and os.geteuid() != 0:
                    hint = "--allow-other needs a line user_allow_other in /etc/fuse.conf"
                raise StorageUnavailable(f"cannot mount at {mountpoint}", hint=hint) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_mountpoint(mountpoint: Path, repository: Repository) -> None:
    """Raise UsageError unless `mountpoint` is an empty directory outside the vault, StorageUnavailable when what was
    mounted there is dead."""
    try:
        with os.scandir(mountpoint) as entries:
            empty = next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{mountpoint} is not a directory", hint=f"mkdir {mountpoint}") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise StorageUnavailable(
                f"{mountpoint} is a stale mount: the program that served it is gone",
                hint=f"{'umount' if os.geteuid() == 0 else 'fusermount3 -u'} {mountpoint}, then mount again",
            ) from None
        raise durable.storage_error(error, f"look at {mountpoint}") from error
    if not empty:
        raise UsageError(f"{mountpoint} is not empty", hint="mount on an empty directory; its files would be hidden")
    store = repository.store
    if isinstance(store, DirectoryStore) and mountpoint.resolve().is_relative_to(store.root.resolve()):
        raise UsageError(f"{mountpoint} is inside the vault", hint="mount elsewhere")


def load_bridge() -> ModuleType:
    """The module that talks to libfuse3. mfusepy takes libfuse2 where there is one unless it is told what to load."""
    if not _DEVICE.exists():
        raise ToolMissing(f"this computer has no FUSE: {_DEVICE} is missing", hint="modprobe fuse")
    if os.geteuid() != 0 and process.find("fusermount3") is None:
        raise ToolMissing("the program fusermount3 is missing", hint="apt-get install fuse3")
    given = os.environ.get(_LIBRARY_VARIABLE)
    try:
        for library in [given] if given else _LIBRARIES:
            os.environ[_LIBRARY_VARIABLE] = library
            with contextlib.suppress(OSError):
                return importlib.import_module("diskprep.vault.fuse")
    except ModuleNotFoundError:
        raise ToolMissing("the Python package mfusepy is missing", hint="pip install mfusepy") from None
    finally:
        os.environ.pop(_LIBRARY_VARIABLE, None)
        if given:
            os.environ[_LIBRARY_VARIABLE] = given
    raise ToolMissing("the library libfuse3 is missing", hint="apt-get install fuse3")


@contextmanager
def _signals_for_libfuse() -> Iterator[None]:
    """libfuse ends a mount at the signals that have no handler; Python's would only run when the mount has ended. Those
    that are ignored stay so."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _block_signals() -> None:
    """In a thread of ours: a signal must wake the one that waits in libfuse."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
