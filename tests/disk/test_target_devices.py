"""Real devices: what holds a disk is seen before it is opened, and what it is by then is looked at again."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import need, need_root, run

from diskprep.disk import content, guard, inventory, target
from diskprep.errors import DiskRefused, Locked
from diskprep.volume import device

pytestmark = pytest.mark.root


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    need_root()
    run("truncate", "-s", "128M", tmp_path / "disk.img")
    node = run("losetup", "--find", "--show", tmp_path / "disk.img").strip()
    yield node
    run("losetup", "--detach", node)


@pytest.fixture
def mounted(loop: str, tmp_path: Path) -> Iterator[Path]:
    """A file system on the loop device, mounted."""
    need("mkfs.ext4")
    run("mkfs.ext4", "-q", "-L", "old photos", loop)
    point = tmp_path / "mounted"
    point.mkdir()
    run("mount", loop, point)
    yield point
    run("umount", point, ok=False)


def test_a_mounted_device_is_refused_by_all_who_look(loop: str, mounted: Path) -> None:
    facts = inventory.facts_of(Path(loop))
    assert any(str(mounted) in reason for reason in guard.refusals(facts, all_disks=[facts]))
    assert device.is_claimed(Path(loop))
    with pytest.raises(DiskRefused, match="is mounted at"):
        target.parse(f"{loop},serial=S1")


def test_a_mount_that_no_table_shows_is_refused(loop: str, mounted: Path) -> None:
    with (mounted / "open file").open("w"):
        run("umount", "--lazy", mounted)
        assert str(mounted) not in Path("/proc/self/mountinfo").read_text()
        with pytest.raises(DiskRefused, match=r"a file system on loop\d+ is in use"):
            target.parse(f"{loop},serial=S1")


def test_a_device_that_is_mounted_after_it_was_confirmed_is_not_opened(loop: str, tmp_path: Path) -> None:
    need("mkfs.ext4")
    run("mkfs.ext4", "-q", loop)
    confirmed = target.parse(f"{loop},serial=S1")
    (tmp_path / "late").mkdir()
    run("mount", loop, tmp_path / "late")
    try:
        with pytest.raises(Locked):
            target.open_claimed(confirmed)
    finally:
        run("umount", tmp_path / "late")


def test_a_device_that_somebody_writes_to_is_refused(loop: str) -> None:
    confirmed = target.parse(f"{loop},serial=S1")
    # A program in the background, for what this process opens is its own.
    writer = "exec 9<>$0; echo ready; read line"

    with subprocess.Popen(
        ["sh", "-c", writer, loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for attempt in (lambda: target.parse(f"{loop},serial=S1"), lambda: target.open_claimed(confirmed)):
            with pytest.raises(DiskRefused, match=f"process {child.pid}.* open for writing"):
                attempt()
        child.communicate("\n")
    target.open_claimed(confirmed).close()


def test_a_device_that_another_diskprep_has_is_locked_not_refused(loop: str) -> None:
    confirmed = target.parse(f"{loop},serial=S1")
    with target.open_claimed(confirmed):
        with pytest.raises(Locked, match="another diskprep"):
            target.parse(f"{loop},serial=S1")
        assert "another diskprep is working on it" in inventory.facts_of(Path(loop)).uses
    assert target.parse(f"{loop},serial=S1").identity == confirmed.identity


def test_looking_at_a_device_does_not_keep_it_from_being_opened(loop: str) -> None:
    confirmed = target.parse(f"{loop},serial=S1")
    with device.open_for_reading(Path(loop)) as looking:
        fcntl.flock(looking.descriptor, fcntl.LOCK_SH)  # udev does that
        assert not device.is_locked(Path(loop))
    with target.open_claimed(confirmed) as opened:
        assert opened.physical_sector_bytes >= 512
        assert opened.ata_identity() == b""


def test_a_loop_device_on_a_disk_is_no_disk_of_its_own(loop: str) -> None:
    second = run("losetup", "--find", "--show", loop).strip()
    try:
        with pytest.raises(DiskRefused, match="made of other devices"):
            target.parse(f"{second},serial=S2")
        with pytest.raises(DiskRefused, match=f"is behind {Path(second).name}"):
            target.parse(f"{loop},serial=S1")
    finally:
        run("losetup", "--detach", second)


def test_what_is_on_a_device_now_is_told(loop: str, mounted: Path) -> None:
    found = content.look(inventory.facts_of(Path(loop)))
    assert found is not None
    assert (found[0].kind, found[0].label) == ("ext4", "old photos")
    assert content.in_words(found) == "ext4 'old photos'"
