"""The benchmarks' data sets. The same seed and scale give the same bytes on every computer; `vm` and `usr` depend on
what is in /usr too.

    big    4 files of 1 GiB that do not compress
    vm     two versions of an ext4 image of 2.9 GB, filled with files of /usr
    usr    the first part of /usr, up to 5 GB
    tiny   200,000 files of 1 KB mean in 3,000 folders: mails, JSON, source code

By hand: `python benchmarks/data.py tiny FOLDER --scale 0.02`
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SEED = 20240917
MIB = 1 << 20

BIG_FILES = 4
BIG_BYTES = 1 << 30

TINY_FILES = 200_000
TINY_MEAN_BYTES = 1010
TINY_PER_FOLDER = 66

VM_BYTES = 2_900_000_000
VM_FILL = 0.82  # of the image, leaving room for inodes, the journal and rounding to blocks
VM_WRITES = 1500
VM_TEXTS = 3
VM_TEXT_BYTES = 32 * MIB
BLOCK = 4096

USR_BYTES = 5_000_000_000


def ensure(name: str, scale: float, folder: Path) -> Path:
    """The data set `name` at `scale` below `folder`, made if it is not there yet. A half-made one is never taken."""
    ready = folder / (name if scale == 1 else f"{name}-{scale:g}")
    if not ready.exists():
        part = ready.with_name(ready.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        SETS[name](part, scale)
        part.rename(ready)
    return ready


def big(folder: Path, scale: float) -> None:
    """Four equal files of noise; PCG64's raw stream is the same on every platform and numpy."""
    size = int(BIG_BYTES * scale) // 8 * 8
    for number in range(BIG_FILES):
        noise = np.random.PCG64(SEED + number)
        with (folder / f"disk{number}.bin").open("wb") as file:
            left = size
            while left:
                step = min(left, 16 * MIB)
                file.write(noise.random_raw(step // 8).tobytes())
                left -= step


def tiny(folder: Path, scale: float) -> None:
    """Small text files of three kinds, a kind a folder; sizes are log-normal."""
    rng = random.Random(SEED)
    words = _Words(rng)
    files = round(TINY_FILES * scale)
    for start in range(0, files, TINY_PER_FOLDER):
        where, suffix, text = rng.choice((_mail, _record, _source))(rng, start // TINY_PER_FOLDER)
        target = folder / where
        target.mkdir(parents=True, exist_ok=True)
        for number in range(start, min(start + TINY_PER_FOLDER, files)):
            size = int(min(max(rng.lognormvariate(math.log(TINY_MEAN_BYTES) - 0.32, 0.8), 64), 65_536))
            data = text(rng, words, number, size).encode()
            descriptor = os.open(target / f"{number:07d}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)


def vm(folder: Path, scale: float) -> None:
    """`monday.img`, and `tuesday.img`: the same with small random writes and three long texts."""
    size = int(VM_BYTES * scale) // MIB * MIB
    content = folder / "content"
    content.mkdir()
    _copy_of_usr(content, int(size * VM_FILL))
    image = folder / "monday.img"
    with image.open("wb") as file:
        file.truncate(size)
    mkfs = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if mkfs is None:
        raise SystemExit("mkfs.ext4 is missing: apt-get install e2fsprogs")
    uuid = "5eed5eed-0000-4000-8000-000000000001"
    options = ["-q", "-F", "-m", "0", "-b", str(BLOCK), "-i", "8192", "-U", uuid, "-E", f"hash_seed={uuid}"]
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000"}
    subprocess.run([mkfs, *options, "-d", content, image], check=True, env=environment)
    shutil.rmtree(content)

    changed = folder / "tuesday.img"
    subprocess.run(["cp", "--sparse=always", image, changed], check=True)
    rng = random.Random(SEED)
    words = _Words(rng)
    with changed.open("r+b") as file:
        for _ in range(round(VM_WRITES * scale)):
            file.seek(rng.randrange(size // BLOCK) * BLOCK)
            file.write(rng.randbytes(BLOCK))
        for _ in range(VM_TEXTS):
            text = words.text(rng, int(VM_TEXT_BYTES * scale)).encode()
            file.seek(rng.randrange((size - len(text)) // BLOCK) * BLOCK)
            file.write(text)


def usr(folder: Path, scale: float) -> None:
    """A part of /usr, for when all of it takes too long."""
    _copy_of_usr(folder, int(USR_BYTES * scale))


SETS: dict[str, Callable[[Path, float], None]] = {"big": big, "vm": vm, "tiny": tiny, "usr": usr}


# --- text ------------------------------------------------------------------------------------------------------------


class _Words:
    """A vocabulary whose words are as unevenly frequent as those of a language (Zipf's law)."""

    def __init__(self, rng: random.Random, *, count: int = 12_000) -> None:
        onsets = [
            "b",
            "br",
            "c",
            "d",
            "f",
            "g",
            "gr",
            "h",
            "j",
            "k",
            "l",
            "m",
            "n",
            "p",
            "pr",
            "r",
            "s",
            "st",
            "t",
            "v",
        ]
        rimes = ["a", "an", "ar", "e", "el", "en", "er", "i", "in", "is", "o", "on", "or", "u", "um", "us"]
        seen: dict[str, None] = {}
        while len(seen) < count:
            seen["".join(rng.choice(onsets) + rng.choice(rimes) for _ in range(rng.randint(1, 4)))] = None
        self.all = list(seen)
        self._weights = list(_running(1 / (rank + 2.7) for rank in range(count)))

    def some(self, rng: random.Random, count: int) -> list[str]:
        return rng.choices(self.all, cum_weights=self._weights, k=count)

    def text(self, rng: random.Random, size: int) -> str:
        """Lines of words, exactly `size` characters."""
        lines: list[str] = []
        length = 0
        while length < size:
            line = " ".join(self.some(rng, 12))
            lines.append(line)
            length += len(line) + 1
        return "\n".join(lines)[: size - 1] + "\n"


def _running(values: Iterator[float]) -> Iterator[float]:
    total = 0.0
    for value in values:
        total += value
        yield total


_Text = Callable[[random.Random, _Words, int, int], str]


def _mail(rng: random.Random, folder: int) -> tuple[str, str, _Text]:
    return f"mail/user{folder % 97:02d}/{rng.choice(('inbox', 'sent', 'archive'))}/{folder:05d}", ".eml", _mail_text


def _record(rng: random.Random, folder: int) -> tuple[str, str, _Text]:
    return f"records/20{folder % 12 + 12}/{rng.randint(1, 12):02d}/{folder:05d}", ".json", _record_text


def _source(rng: random.Random, folder: int) -> tuple[str, str, _Text]:
    return f"src/project{folder % 31:02d}/lib/module{rng.randint(0, 9)}/{folder:05d}", ".py", _source_text


def _mail_text(rng: random.Random, words: _Words, number: int, size: int) -> str:
    sender, receiver, *subject = words.some(rng, 6)
    head = (
        f"From: {sender} <{sender}@example.org>\nTo: {receiver} <{receiver}@example.net>\n"
        f"Message-ID: <{number}.{rng.getrandbits(64):016x}@mail.example.org>\n"
        f"Date: {rng.randint(1, 28)} Mar 20{rng.randint(10, 24)} "
        f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d} +0000\n"
        f"Subject: {' '.join(subject)}\n\n"
    )
    return head + words.text(rng, max(size - len(head), 16))


def _record_text(rng: random.Random, words: _Words, number: int, size: int) -> str:
    record: dict[str, object] = {"id": number, "key": f"{rng.getrandbits(128):032x}", "active": rng.random() < 0.7}
    length = 80
    while length < size:
        name, *values = words.some(rng, rng.randint(2, 7))
        value: object = " ".join(values) if rng.random() < 0.6 else rng.randint(0, 10**9)
        record[f"{name}_{len(record)}"] = value
        length += len(name) + len(str(value)) + 12
    return json.dumps(record, indent=1) + "\n"


def _source_text(rng: random.Random, words: _Words, number: int, size: int) -> str:
    lines = [f'"""{" ".join(words.some(rng, 8))}."""', "", "import os", ""]
    length = sum(map(len, lines)) + len(lines)
    while length < size:
        name, left, right, note, other = words.some(rng, 5)
        block = [
            f"def {name}_{number}({left}, {right}={rng.randint(0, 999)}):",
            f"    # {note} {other}",
            f"    if {left} > {right}:",
            f"        return {left} - {right} * {rng.randint(2, 64)}",
            f"    return os.path.join(str({left}), {note!r})",
            "",
        ]
        lines += block
        length += sum(map(len, block)) + len(block)
    return "\n".join(lines)


# --- an image's content ----------------------------------------------------------------------------------------------


def _copy_of_usr(content: Path, budget: int) -> None:
    """Copies of /usr's files and links in the order of their names, until `budget` bytes in whole blocks are used."""
    for folder, names, files in os.walk("/usr"):
        names.sort()
        target = content / Path(folder).relative_to("/")
        target.mkdir(parents=True)
        for name in sorted(files):
            source = Path(folder) / name
            status = source.lstat()
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                continue
            budget -= -(-status.st_size // BLOCK) * BLOCK
            if budget < 0:
                return
            shutil.copy2(source, target / name, follow_symlinks=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make one data set of the benchmarks.")
    parser.add_argument("name", choices=sorted(SETS))
    parser.add_argument("folder", type=Path, help="the set becomes FOLDER/NAME, or FOLDER/NAME-SCALE")
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    print(ensure(options.name, options.scale, options.folder))


if __name__ == "__main__":
    main()
