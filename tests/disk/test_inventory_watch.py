"""A disk that is attached is noticed, once for each attachment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import need_root, run

from diskprep.disk import inventory, watch

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_root()
    path = tmp_path / "disk.img"
    run("truncate", "-s", "128M", path)
    return path


def _attach(image: Path) -> str:
    return run("losetup", "--find", "--show", image).strip().removeprefix("/dev/")


def _detach(name: str) -> None:
    run("losetup", "--detach", f"/dev/{name}", ok=False)


def _next_of(arrivals: Iterator[inventory.DiskFacts], image: Path) -> inventory.DiskFacts:
    """The next arrival that is our image: other tests attach theirs."""
    return next(disk for disk in arrivals if inventory.loop_file(disk.name) == image)


def test_a_disk_is_told_once_and_again_when_it_is_plugged_in_again(image: Path) -> None:
    arrivals = watch.arrivals(inventory.list_disks())
    name = _attach(image)
    try:
        first = _next_of(arrivals, image)
        assert (first.name, first.size_bytes) == (name, 128 << 20)
        _detach(name)
        name = _attach(image)
        second = _next_of(arrivals, image)
        assert second.sequence > first.sequence
    finally:
        _detach(name)


def test_a_disk_that_was_there_is_not_told(image: Path) -> None:
    name = _attach(image)
    other = image.with_name("other.img")
    run("truncate", "-s", "128M", other)
    later = ""
    try:
        arrivals = watch.arrivals()
        later = _attach(other)
        told = []
        for disk in arrivals:
            told.append(inventory.loop_file(disk.name))
            if told[-1] == other:
                break
        assert image not in told
    finally:
        _detach(name)
        _detach(later)


def test_it_works_without_messages(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_waiter", watch._Seconds)
    arrivals = watch.arrivals(inventory.list_disks())
    name = _attach(image)
    try:
        assert _next_of(arrivals, image).name == name
    finally:
        _detach(name)


def test_it_ends_soon_after_it_is_told_to() -> None:
    stop = threading.Event()
    told: list[inventory.DiskFacts] = []
    thread = threading.Thread(target=lambda: told.extend(watch.arrivals(stop=stop)))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
