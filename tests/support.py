"""Helpers of the tests: other people's programs, the command line as a user gives it, small trees."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest


def open_descriptors() -> Counter[str]:
    """What this process has open, and how often. What is there afterwards and was not before was left open; what is
    gone may be some other test's: a server's connection, or what the collector found."""
    found: Counter[str] = Counter()
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[str(number.readlink())] += 1
    return Counter({what: count for what, count in found.items() if not what.startswith("/proc/")})


class TurnedClock:
    """A clock that starts at a fixed moment and goes on when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, **kwargs: float) -> None:
        self.moment += timedelta(**kwargs)


def need(program: str) -> str:
    """The path of another project's program. In CI its absence is a failure, elsewhere a loud skip."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        reason = f"{program} is missing: `.ci/prepare test` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def windows_volumes_archive() -> Path | None:
    """Volumes that Windows made: the sample images of the cryptsetup project, too foreign to be part of this one."""
    folder = os.environ.get("DISKPREP_BITLK_IMAGES") or Path(__file__).parents[2] / "shared/data/bitlocker"
    archive = Path(folder) / "bitlk-images.tar.xz"
    return archive if archive.exists() else None


def need_root() -> None:
    """Skip, or fail in CI, when the tests do not run as root."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI runs as root")
        pytest.skip("needs root")


def need_mounts(path: Path) -> None:
    """Skip, or fail in CI, where the mount that holds `path` cannot be seen: in a chroot."""
    device = path.stat().st_dev
    seen = [line.split(" ")[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if f"{os.major(device)}:{os.minor(device)}" not in seen:
        reason = "the mounts of this computer cannot be seen (in a chroot they never can)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def plain_user() -> tuple[str, ...]:
    """What a command is prefixed with to run as somebody without any capability, who still owns root's files."""
    need_root()
    prefix = (need("unshare"), "--user", "--map-user=1000", "--map-group=1000", "--")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        reason = "user namespaces are not allowed here (in a chroot they never are)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return prefix


def run(*argv: str | Path, stdin: str | None = None, env: dict[str, str] | None = None, ok: bool = True) -> str:
    """Run a program to its end and return both its streams; unless `ok` is False it must succeed."""
    done = subprocess.run(
        [str(a) for a in argv],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        timeout=550,
        check=False,
    )
    assert not ok or done.returncode == 0, f"{argv[0]} exited with {done.returncode}: {done.stdout[-3000:]}"
    return done.stdout


def diskprep(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run our program as a user does; returns stdout and stderr, and insists on the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "diskprep", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}, not {code}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout, done.stderr


def diskprep_json(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """`diskprep ... --json` as a value; stdout must be one document."""
    document = json.loads(diskprep(*arguments, "--json", code=code)[0])
    assert isinstance(document, dict)
    return document


def make_tree(root: Path, *, megabytes: int = 8, seed: int = 7) -> Path:
    """A small tree with most things a tree may hold; odd names, links, holes, a socket, special modes and times."""
    rng = random.Random(seed)
    root.mkdir(parents=True)
    for number in range(megabytes):
        folder = root / f"folder {number % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"random-{number}.bin").write_bytes(rng.randbytes(700_000))
        (folder / f"text-{number}.txt").write_bytes(b"%d lines of text\n" % number * 18_000)
    (root / "folder 1").mkdir(exist_ok=True)
    for number in range(300):
        (root / "folder 1" / f"small-{number}").write_bytes(rng.randbytes(rng.randrange(600)))
    (root / "empty").write_bytes(b"")
    (root / "empty folder").mkdir()
    odd = root / "odd"
    odd.mkdir()
    for name in (b"new\nline", b"not-utf8-\xff\xfe", b'tab\tquote"back\\slash', b"<&>", "ünï€".encode(), b"n" * 255):
        with open(os.path.join(os.fsencode(odd), name), "wb") as stream:  # noqa: PTH123, PTH118  names are bytes
            stream.write(name)
    (odd / "dangling").symlink_to("nowhere/at all")
    (odd / "to folder").symlink_to("../folder 0")
    (odd / "hard-1").write_bytes(b"linked" * 1000)
    (odd / "hard-2").hardlink_to(odd / "hard-1")
    with (odd / "holes").open("wb") as stream:
        stream.truncate(20 << 20)
        stream.seek(10 << 20)
        stream.write(b"island")
    os.mkfifo(odd / "fifo")
    (odd / "suid").write_bytes(b"#!/bin/true\n")
    (odd / "suid").chmod(0o4755)
    (odd / "no rights").write_bytes(b"secret")
    (odd / "no rights").chmod(0)
    for path, moment in ((odd / "hard-1", -1_500_000_001), (odd / "suid", 4_102_444_800_123_456_789)):
        os.utime(path, ns=(moment, moment))
    with contextlib.suppress(OSError):  # a file system without extended attributes
        os.setxattr(odd / "suid", "user.note", b"\x00value")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(odd)  # a socket's path is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    os.utime(odd, ns=(1, 1))
    return root
