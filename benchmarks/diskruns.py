"""One run each of what the benchmark of disks compares: diskprep, dd, a raw read, and copying by hand over FUSE."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from harness import Bench, Failed, Reading, kernel_field, metered
from seeds import Seed

import journal
from diskprep.clock import parse_rfc3339
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import create_image, open_for_writing
from diskprep.volume.format import format_disk

MIB = 1 << 20
_MOUNT_LIMIT_S = 60.0
#: The journal's record that ends a phase -> what the tables call the phase. Others are short.
PHASES = {"formatted": "format", "filled": "fill", "manifest": "manifest", "verified": "read-back"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run, over all disks of it: from the first disk's beginning to the last one's end."""

    wall_s: float
    cpu_s: float  # of all processes, between two looks as near as possible
    largest_bytes: int  # what the largest process held; 0 for what ended before it was looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run took. `raw_s` and `raw_bytes`: a raw read of the image that was just written, where one was made.

    `all_bytes`: the highest sum of what all processes held at one time; `largest_bytes`: what the largest held.
    """

    size: int
    wall_s: float
    packs: int = 0
    cpu_s: float = 0.0
    phases: dict[str, Phase] = field(default_factory=dict)
    raw_s: float = 0.0
    raw_bytes: int = 0
    all_bytes: int = 0
    largest_bytes: int = 0


class Family:
    """What the processes of a command used: CPU time as it grew, and memory.

    Memory is the proportional share (PSS), and the files that are kept in memory alone (memfd): they are in no
    process's share, so the process is charged for them that has them open.
    """

    def __init__(self) -> None:
        self.all_bytes = 0
        self.largest_bytes = 0
        self._cpu: list[tuple[float, float]] = []
        self._held: list[tuple[float, int]] = []

    def look(self, pids: Sequence[int]) -> None:
        seen: set[int] = set()
        held = [kernel_field(pid, "smaps_rollup", "Pss:") + sum(_memory_files(pid, seen)) for pid in reversed(pids)]
        self.all_bytes = max(self.all_bytes, sum(held))
        self.largest_bytes = max(self.largest_bytes, *held)
        self._held.append((time.time(), max(held)))
        self._cpu.append((time.time(), sum(map(_cpu_s, pids))))

    def phase(self, begin: float, end: float) -> Phase:
        """What was used between two moments (seconds since 1970)."""
        return Phase(
            wall_s=end - begin,
            cpu_s=self._at(end) - self._at(begin),
            largest_bytes=max((held for moment, held in self._held if begin <= moment <= end), default=0),
        )

    def _at(self, moment: float) -> float:
        """CPU time until then, in straight lines from look to look."""
        before = (moment, 0.0)
        for look in self._cpu:
            if look[0] >= moment:
                share = (moment - before[0]) / (look[0] - before[0]) if look[0] > before[0] else 0.0
                return before[1] + share * (look[1] - before[1])
            before = look
        return before[1]


@contextmanager
def scratch(above: Path) -> Iterator[Path]:
    """An empty folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-disks-", dir=above) as folder:
        yield Path(folder)


def prepare(bench: Bench, seed: Seed, folder: Path, *, disks: int = 1, disk_bytes: int = 0) -> Run:
    """`diskprep disk prepare` onto new images in `folder`. A single one is then read raw. Raises Failed."""
    seed.renew()
    size = disk_bytes or seed.disk_bytes(disks)
    images = [folder / f"BENCH-{number}.img" for number in range(1, disks + 1)]
    journals = folder / "journals"
    command = [str(bench.diskprep), "disk", "prepare", str(seed.staging), *map(str, images), "--quiet"]
    command += ["--container-sas-file", str(seed.signature), "--journals", str(journals)]
    family = Family()
    try:
        for image in images:  # the command itself makes none below /dev, where a tmpfs may be
            create_image(image, size)
        reading = metered(command, environment={}, limit_s=bench.limit_s, look=family.look)
        phases = _phases([journals / f"{image.stem}.journal" for image in images], family)
        raw_s, raw_bytes = _raw_read(bench, images[0]) if disks == 1 and not disk_bytes else (0.0, 0)
    finally:
        shutil.rmtree(journals, ignore_errors=True)
        for image in images:
            image.unlink(missing_ok=True)
    return Run(
        size=seed.size,
        packs=len(seed.packs),
        wall_s=reading.wall_s,
        cpu_s=reading.cpu_s,
        phases=phases,
        raw_s=raw_s,
        raw_bytes=raw_bytes,
        all_bytes=family.all_bytes,
        largest_bytes=family.largest_bytes,
    )


def dd(bench: Bench, source: Path, folder: Path, *, copies: int = 1) -> Run:
    """`dd` of a file; with more `copies` as many at once, each of its own part of the file. Raises Failed."""
    size = source.stat().st_size
    part = -(-size // copies // (4 * MIB)) * 4 * MIB
    targets = [folder / f"dd-{number}" for number in range(copies)]
    commands = [
        [*_dd(source, at * part, min(part, size - at * part)), f"of={target}", "conv=fdatasync"]
        for at, target in enumerate(targets)
        if at * part < size
    ]
    try:
        reading = _at_once(bench, commands)
    finally:
        for target in targets:
            target.unlink(missing_ok=True)
    return Run(size=size, wall_s=reading.wall_s, cpu_s=reading.cpu_s)


def by_hand(bench: Bench, packs: Sequence[Path], folder: Path) -> Run:
    """Copy packs onto a BitLocker image with dislocker-fuse and ntfs-3g; the clock starts when both are mounted.

    It stops when both are unmounted and the image is synced. Raises Failed.
    """
    size = sum(pack.stat().st_size for pack in packs)
    image, outer, inner = folder / "hand.img", folder / "dislocker", folder / "ntfs"
    password = generate_recovery_password()
    create_image(image, size + size // 8 + 128 * MIB)
    try:
        with open_for_writing(image) as device:
            layout = format_disk(
                device,
                method=Method.XTS_AES_256,
                label="BY HAND",
                description="benchmark",
                recovery_password=password,
                created=datetime.now(UTC),
            )
        key = f"-p{password.reveal()}"  # of an image that is removed in a minute
        unlock = ["dislocker-fuse", "-V", str(image), "-O", str(layout.start_bytes), key, "--", str(outer), "-f"]
        mount = ["ntfs-3g", "-o", "no_detach,big_writes", str(outer / "dislocker-file"), str(inner)]
        os.sync()
        with _mounted(unlock, outer, "dislocker-file"), _mounted(mount, inner):
            start = time.perf_counter()
            metered(["cp", *map(str, packs), str(inner)], environment={}, limit_s=bench.limit_s)
            # leaving a mount waits until its program has written everything and ended
        with image.open("r+b") as file:
            os.fsync(file.fileno())
        return Run(size=size, wall_s=time.perf_counter() - start)
    finally:
        image.unlink(missing_ok=True)
        for mounted in (inner, outer):
            with suppress(OSError):
                mounted.rmdir()


def forget(paths: Iterable[Path]) -> None:
    """Have the page cache let go of files, so that they are read from their medium. On a tmpfs nothing changes."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# --- parts of a run --------------------------------------------------------------------------------------------------


def _phases(journals: Sequence[Path], family: Family) -> dict[str, Phase]:
    """A phase lasts from the step's record before it to its own."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for path in journals:
        before = 0.0
        for record in journal.read(path)[1:]:
            if record.type == "batch":
                continue
            now = parse_rfc3339(str(record.fields["time"])).timestamp()
            if record.type in PHASES:
                spans.setdefault(PHASES[record.type], []).append((before, now))
            before = now
    return {
        name: family.phase(min(begin for begin, _ in times), max(end for _, end in times))
        for name, times in spans.items()
    }


def _raw_read(bench: Bench, image: Path) -> tuple[float, int]:
    """Seconds and bytes of dd over what was written of an image, the cache dropped before."""
    runs = [(offset, length) for offset, length in _written(image) if length >= MIB]
    commands = [[*_dd(image, offset, length), "of=/dev/null"] for offset, length in runs]
    forget([image])
    reading = metered(["sh", "-ec", "\n".join(map(shlex.join, commands))], environment={}, limit_s=bench.limit_s)
    return reading.wall_s, sum(length for _, length in runs)


def _written(image: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole."""
    with image.open("rb", buffering=0) as file:
        descriptor, end = file.fileno(), 0
        with suppress(OSError):  # ENXIO: nothing but a hole up to the end
            while True:
                begin = os.lseek(descriptor, end, os.SEEK_DATA)
                end = os.lseek(descriptor, begin, os.SEEK_HOLE)
                yield begin, end - begin


def _dd(source: Path, offset: int, length: int) -> list[str]:
    return [
        "dd",
        "bs=4M",
        "status=none",
        "iflag=skip_bytes,count_bytes",
        f"if={source}",
        f"skip={offset}",
        f"count={length}",
    ]


def _at_once(bench: Bench, commands: Sequence[Sequence[str]]) -> Reading:
    if len(commands) == 1:
        return metered(commands[0], environment={}, limit_s=bench.limit_s)
    started = "".join(f'{shlex.join(command)} & all="$all $!"\n' for command in commands)
    script = f"all=\n{started}for one in $all; do wait $one; done"
    return metered(["sh", "-ec", script], environment={}, limit_s=bench.limit_s)


@contextmanager
def _mounted(command: Sequence[str], place: Path, wanted: str = "") -> Iterator[None]:
    """`place` while `command`, which stays in the foreground, has mounted there. Raises Failed."""
    place.mkdir()
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        start = time.perf_counter()
        while not (place.is_mount() and (place / wanted).exists()):
            if program.poll() is not None or time.perf_counter() - start > _MOUNT_LIMIT_S:
                raise Failed(f"{command[0]} did not mount {place}")
            time.sleep(0.02)
        yield
        _run("umount", str(place))
        if program.wait(_MOUNT_LIMIT_S * 10):
            raise Failed(f"{command[0]}: exit status {program.returncode}")
    finally:
        if place.is_mount():
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        if program.poll() is None:
            program.terminate()
            program.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")


def _memory_files(pid: int, seen: set[int]) -> Iterator[int]:
    """Bytes of each memfd that a process has open and that was not seen before."""
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if str(link.readlink()).startswith("/memfd:"):
                status = link.stat()
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    yield status.st_blocks * 512


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of those of its children that have ended and were waited for."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
