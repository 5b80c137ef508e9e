"""File systems of their own on loop devices, for tests that take snapshots of them or freeze them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import need, need_root, run

_SIZES = {"btrfs": 128 << 20, "ext4": 32 << 20, "xfs": 320 << 20}
MakeVolume = Callable[..., Path]


@pytest.fixture
def make_volume(tmp_path: Path) -> Iterator[MakeVolume]:
    """`make_volume(fstype, name=...)`: the mount point of a new file system; gone after the test."""
    need_root()
    made: list[Path] = []

    def make(fstype: str, name: str = "volume", options: str = "") -> Path:
        image, point = tmp_path / f"{name}.img", tmp_path / name
        with image.open("wb") as stream:
            stream.truncate(_SIZES[fstype])
        run(need(f"mkfs.{fstype}"), "-q", image)
        point.mkdir()
        run("mount", "-o", f"loop{options}", image, point)
        made.append(point)
        return point

    yield make
    for point in reversed(made):
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["fsfreeze", "-u", point], capture_output=True, check=False, timeout=30)
        subprocess.run(["umount", "-R", point], capture_output=True, check=False, timeout=60)


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """Where private rooms are made."""
    return tmp_path / "run"
