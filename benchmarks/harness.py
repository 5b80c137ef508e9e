"""What the benchmarks share: their options, where things lie, and running one command under a meter."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import data
import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 0.2
GIB = 1 << 30

T = TypeVar("T")


class Failed(Exception):
    """A command of a benchmark failed; the text is the end of what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one run of a command took. Memory is sampled, so that a peak shorter than SAMPLE_S may be missed.

    `pss_bytes` is the highest sum over the processes of their share of memory; `rss_bytes` the highest mark of the
    largest process; `cpu_s` user and system time of all processes.
    """

    wall_s: float
    cpu_s: float
    pss_bytes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A source: `files` counts everything but folders, `size` the bytes of regular files, hard links once."""

    name: str
    path: Path
    files: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one run of one tool happens; all of it is gone afterwards."""

    repository: Path
    home: Path  # caches and settings of the tool, never on the repository's file system
    passphrase_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The options all benchmarks have."""

    work: Path
    data: Path
    repository: Path | None
    scale: float
    runs: int
    sets: tuple[str, ...]
    tools: tuple[str, ...]
    limit_s: float
    diskprep: Path
    document: Path | None
    whole: bool  # nothing was left out: the result may go into the document
    written_to: set[str] = field(default_factory=set)  # the file systems that took repositories so far

    def tree(self, name: str, *, scale: float = 1.0) -> Tree:
        """The data set `name` at `scale` times the run's scale, made if it is missing. A path is its own data set."""
        if name.startswith("/"):
            return measured_tree(name, Path(name))
        say(f"data set {name}")
        total = self.scale * scale
        if name == "usr" and total == 1:
            return measured_tree(name, Path("/usr"))
        return measured_tree(name, data.ensure(name, total, self.data))

    @contextmanager
    def place(self, tree: Tree, tool: str) -> Iterator[Place]:
        """An empty place for `tool` to store `tree`: in memory when that has room, else in the work folder."""
        self.work.mkdir(parents=True, exist_ok=True)
        root = self.repository or roomy_tmpfs(tree.size) or self.work
        self.written_to.add(filesystem(root))
        with (
            tempfile.TemporaryDirectory(prefix=f"bench-{tool}-", dir=root) as repository,
            tempfile.TemporaryDirectory(prefix=f"home-{tool}-", dir=self.work) as home,
        ):
            passphrase = Path(home) / "passphrase"
            passphrase.write_text("correct horse battery staple\n")
            passphrase.chmod(0o600)
            yield Place(repository=Path(repository) / "repository", home=Path(home), passphrase_file=passphrase)


def options(description: str | None, *, sets: str, tools: str, argv: Sequence[str] | None = None) -> Bench:
    """Read the command line; `sets` and `tools` are the defaults, with commas."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=sets, help="data sets, or absolute paths of folders (default: %(default)s)")
    parser.add_argument("--tools", default=tools, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="repetitions, interleaved (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data sets, e.g. 0.02 to try it out")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bench", help="caches and tools (%(default)s)")
    parser.add_argument("--data", type=Path, help="where the data sets are kept (default: WORK/data)")
    parser.add_argument("--repository", type=Path, help="where is written to (default: a tmpfs with room, else WORK)")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds a run may take (default: %(default)g)")
    parser.add_argument("--diskprep", type=Path, default=ROOT / ".venv" / "bin" / "diskprep", help="%(default)s")
    parser.add_argument("--document", type=Path, help="a Markdown file whose marked section takes a whole run's result")
    given = parser.parse_args(argv)
    work: Path = given.work.resolve()
    chosen_sets, chosen_tools = tuple(given.sets.split(",")), tuple(given.tools.split(","))
    unknown = {name for name in chosen_sets if not name.startswith("/")} - {*data.SETS}
    unknown |= {*chosen_tools} - {*tools.split(",")}
    if unknown:
        known = ", ".join(sorted(data.SETS))
        parser.error(f"unknown: {', '.join(sorted(unknown))} (sets are {known}; tools are {tools})")
    return Bench(
        work=work,
        data=(given.data or work / "data").resolve(),
        repository=given.repository and given.repository.resolve(),
        scale=given.scale,
        runs=given.runs,
        sets=chosen_sets,
        tools=chosen_tools,
        limit_s=given.limit,
        diskprep=given.diskprep.absolute(),
        document=given.document,
        whole=given.scale == 1 and {*chosen_sets} >= {*sets.split(",")} and {*chosen_tools} >= {*tools.split(",")},
    )


def turns(runs: int, items: Sequence[T]) -> Iterator[T]:
    """Every item `runs` times, taking turns so that noise hits all alike, and none is always first."""
    for run in range(runs):
        for turn in range(len(items)):
            yield items[(turn + run) % len(items)]


def say(text: str) -> None:
    """A note on progress; the result alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


# --- trees -----------------------------------------------------------------------------------------------------------


def measured_tree(name: str, path: Path) -> Tree:
    if not path.is_dir():
        raise SystemExit(f"{path} is not a folder")
    seen: set[tuple[int, int]] = set()
    files = size = 0
    for entry in _entries(path):
        files += 1
        status = entry.stat(follow_symlinks=False)
        if entry.is_file(follow_symlinks=False) and (status.st_dev, status.st_ino) not in seen:
            size += status.st_size
            if status.st_nlink > 1:
                seen.add((status.st_dev, status.st_ino))
    return Tree(name=name, path=path, files=files, size=size)


def warm(path: Path) -> None:
    """Read all of it, so that every run finds it in the page cache."""
    buffer = bytearray(1 << 20)
    for entry in _entries(path):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path a file is dear at a million files
                while file.readinto(buffer):
                    pass


def heat(folder: Path, size: int) -> None:
    """Have the kernel hold memory for `size` bytes below `folder`, written and removed again: in a virtual machine
    whoever touches memory first pays for getting it from the host, and it is not to be always the same tool."""
    spare = folder / "heat"
    block = bytes(1 << 20)
    try:
        with spare.open("wb", buffering=0) as file:
            for _ in range(size >> 20):
                file.write(block)
    finally:
        spare.unlink()


def stored(path: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in _entries(path) if not entry.is_symlink())


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `path` but folders. None for a `path` that does not exist."""
    waiting = [str(path)] if path.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def filesystem(path: Path) -> str:
    """The kind of file system `path` is on."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "an unknown file system")


def roomy_tmpfs(size: int) -> Path | None:
    """A writable tmpfs that takes `size` bytes while as much stays in the page cache and 3 GiB is left for the tool."""
    if psutil.virtual_memory().available < 2 * size + 3 * GIB:
        return None
    mounts = [Path(mount.mountpoint) for mount in psutil.disk_partitions(all=True) if mount.fstype == "tmpfs"]
    for mount in sorted(mounts, key=lambda mount: mount != Path("/dev/shm")):
        if os.access(mount, os.W_OK) and shutil.disk_usage(mount).free > 1.1 * size + GIB:
            return mount
    return None


# --- the meter -------------------------------------------------------------------------------------------------------


def metered(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    limit_s: float,
    look: Callable[[Sequence[int]], None] | None = None,
) -> Reading:
    """Run `command` to its end. `look` is shown the processes' ids each time they are looked at, the first one's first.

    Raises Failed when it fails or outlasts `limit_s`.
    """
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        sampler = _Sampler(process.pid, deadline=start + limit_s, look=look)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            sampler.stop()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        if sampler.expired:
            raise Failed(f"{command[0]}: did not end within {limit_s:g} s")
        if process.returncode:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
            text = said.read().decode(errors="replace").strip()
            raise Failed(f"{command[0]}: exit status {process.returncode}: {text}")
    return Reading(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        pss_bytes=sampler.pss_bytes,
        rss_bytes=sampler.rss_bytes,
    )


class _Sampler(threading.Thread):
    """Looks at a process and its descendants five times a second, and ends their session after `deadline`."""

    def __init__(self, pid: int, *, deadline: float, look: Callable[[Sequence[int]], None] | None) -> None:
        super().__init__(daemon=True)
        self.pss_bytes = 0
        self.rss_bytes = 0
        self.expired = False
        self._pid = pid
        self._deadline = deadline
        self._look = look
        self._stopped = threading.Event()

    def run(self) -> None:
        wait_s = SAMPLE_S / 4  # the first look is early, for what ends soon
        while not self._stopped.wait(wait_s):
            wait_s = SAMPLE_S
            try:
                root = psutil.Process(self._pid)
                family = [self._pid, *(child.pid for child in root.children(recursive=True))]
            except psutil.NoSuchProcess:
                return
            self.pss_bytes = max(self.pss_bytes, sum(kernel_field(pid, "smaps_rollup", "Pss:") for pid in family))
            self.rss_bytes = max(self.rss_bytes, *(kernel_field(pid, "status", "VmHWM:") for pid in family))
            if self._look is not None:
                self._look(family)
            if time.perf_counter() > self._deadline and not self.expired:
                self.expired = True
                os.killpg(self._pid, signal.SIGKILL)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def kernel_field(pid: int, file: str, name: str) -> int:
    """The field `name`, kept in kB by the kernel, in bytes; 0 when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
