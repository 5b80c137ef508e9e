"""What the tests of `diskprep stage` share: the command as typed, what a tree holds, and restic's word on a staging."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import need, run

PASSPHRASE = "a canary passphrase, long enough"
PROGRAM = (sys.executable, "-m", "diskprep")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """A staging, and the files around it in `base`."""

    base: Path
    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def secret(self) -> tuple[str, str]:
        file = self.base / "passphrase"
        if not file.exists():
            file.write_text(PASSPHRASE + "\n")
            file.chmod(0o600)
        return "--passphrase-file", str(file)

    def command(self, *sources: Path | str, more: tuple[str | Path, ...] = (), job: str = "job-one") -> list[str]:
        trip = ("--job", job, "--storage-account", "account1", "--container", "imported", "--resource-group", "group")
        azure = ("--subscription", "11111111-2222-4333-8444-555555555555")
        secret = () if any(str(word).startswith("--passphrase") for word in more) else self.secret
        typed = ("stage", *sources, "--staging", self.root, *trip, *azure, *secret, *more)
        return [*PROGRAM, *map(str, typed)]

    def stage(
        self, *sources: Path | str, more: tuple[str | Path, ...] = (), code: int = 0, job: str = "job-one"
    ) -> Done:
        return ended(self.command(*sources, more=more, job=job), code)

    def start(self, *sources: Path | str) -> subprocess.Popen[str]:
        """The command in a process group of its own."""
        return subprocess.Popen(
            self.command(*sources),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def packs(self) -> dict[str, tuple[int, int]]:
        """Name of each pack -> inode and time of writing: another value means that it was written again."""
        found = [path for path in self.repository.glob("data/??/*") if not path.name.startswith(".")]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    def pack_bytes(self) -> int:
        return sum((self.repository / "data" / name[:2] / name).stat().st_size for name in self.packs())

    def restic(self, *arguments: str | Path, ok: bool = True) -> str:
        return restic(self.repository, *arguments, secret=self.secret[1], ok=ok)

    def assert_whole(self, source: Path, restored: Path) -> None:
        """`assert_sound`, and restic restores what the source is."""
        self.assert_sound()
        self.restic("restore", "latest", "--target", restored)
        assert tree(restored / source.relative_to("/")) == tree(source)

    def assert_sound(self) -> None:
        """restic finds no fault, and no pack that nobody knows; nothing of an interrupted run is left."""
        said = self.restic("check")
        assert "no errors were found" in said
        assert "not referenced" not in said
        self.assert_tidy()

    def assert_tidy(self) -> None:
        assert list(self.root.rglob(".tmp-*")) == []
        assert list((self.repository / "locks").iterdir()) == []
        assert processes_of(self.root) == []
        assert (self.root / "seal.json").exists()


def ended(command: list[str], code: int) -> Done:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=550, check=False
    )
    assert done.returncode == code, f"exit {done.returncode}, not {code}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def restic(repository: Path, *arguments: str | Path, secret: str, ok: bool = True) -> str:
    environment = {"RESTIC_PASSWORD_FILE": secret, "RESTIC_PROGRESS_FPS": "0.01"}
    return run(need("restic"), "--no-cache", "-r", repository, *arguments, env=environment, ok=ok)


def processes_of(place: Path) -> list[int]:
    """Living processes of diskprep that have `place` on their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(place) in words and b"diskprep" in words:
            found.append(int(line.parent.name))
    return found


def wait_until(holds: Any, *, seconds: float = 60.0) -> bool:
    """Wait until `holds()`; False when it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.005)
    return False


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def end(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Both streams of a command that ends by itself or was killed."""
    try:
        return child.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise


def make_mixed(root: Path, *, megabytes: int, seed: int = 5) -> Path:
    """Small files in some folders and long ones beside them, half of the bytes each; nothing compresses."""
    rng = random.Random(seed)
    for number in range(megabytes * 12):
        folder = root / f"folder {number % 12}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"small {number}").write_bytes(rng.randbytes(rng.randrange(80_000)))
    for number in range(max(1, megabytes // 16)):
        (root / f"long {number}").write_bytes(rng.randbytes(8 << 20))
    return root


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below `root` that a restore must bring back, by path: kind, mode, owner, time, attributes, content,
    and its other names."""
    found: dict[bytes, tuple[object, ...]] = {}
    twins: dict[tuple[int, int], list[bytes]] = {}
    top = os.fsencode(root)
    for folder, _, names, descriptor in os.fwalk(top):
        with os.scandir(descriptor) as entries:  # the walk counts a link to a folder among the folders
            links = [os.fsencode(entry.name) for entry in entries if entry.is_symlink()]
        for name in {b".", *names, *links}:
            status = os.lstat(name, dir_fd=descriptor)
            if stat.S_ISSOCK(status.st_mode):
                continue
            path = (folder + b"/" + name)[len(top) + 1 :]
            where = b"/proc/self/fd/%d/%s" % (descriptor, name)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(where, "rb") as stream:  # noqa: PTH123  bytes
                    content = (status.st_size, hashlib.file_digest(stream, "sha256").hexdigest())
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(where)  # noqa: PTH115
            attributes = [(a, os.getxattr(where, a, follow_symlinks=False)) for a in _attributes(where)]
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                twins.setdefault((status.st_dev, status.st_ino), []).append(path)
            device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
            # restic 0.14 gives a symlink the time of its making.
            moment = 0 if stat.S_ISLNK(status.st_mode) else status.st_mtime_ns
            owner = (status.st_uid, status.st_gid)
            found[path] = (status.st_mode, owner, moment, device, tuple(sorted(attributes)), content)
    for group in twins.values():
        for path in group:
            found[path] += (tuple(sorted(group)),)
    return found


def _attributes(where: bytes) -> list[str]:
    return os.listxattr(where, follow_symlinks=False)
