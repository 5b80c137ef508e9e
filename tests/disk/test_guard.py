"""What must never be erased is refused, and nothing overrides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diskprep.disk import guard, inventory, target
from diskprep.errors import DiskRefused, NotFound, UsageError

BLANK = inventory.DiskFacts(
    name="sdx",
    node=Path("/dev/sdx"),
    serial="WD-1234",
    model="Some disk",
    size_bytes=1 << 40,
    sector_bytes=512,
    read_only=False,
    removable=False,
    rotational=True,
    bus="sata",
    is_partition=False,
    uses=(),
)


def test_a_blank_disk_may_be_erased() -> None:
    assert guard.refusals(BLANK, all_disks=[BLANK]) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uses": ("sdx1 is mounted at /",)}, "mounted at /"),
        ({"uses": ("sdx2 is swap space",)}, "swap"),
        ({"uses": ("sdx is held by dm-0",)}, "held by dm-0"),
        ({"is_partition": True}, "partition"),
        ({"read_only": True}, "read-only"),
        ({"sector_bytes": 4096}, "4096"),
        ({"size_bytes": 1 << 20}, "smaller"),
    ],
)
def test_a_disk_in_use_or_unfit_is_refused(change: dict[str, object], says: str) -> None:
    disk = replace(BLANK, **change)  # type: ignore[arg-type]
    reasons = guard.refusals(disk, all_disks=[disk])
    assert len(reasons) == 1
    assert says in reasons[0]
    with pytest.raises(DiskRefused, match="must not be erased"):
        guard.refuse_if(reasons, disk)


def test_two_disks_with_one_serial_are_refused() -> None:
    twin = replace(BLANK, name="sdy", node=Path("/dev/sdy"))
    assert "same serial" in guard.refusals(BLANK, all_disks=[BLANK, twin])[0]


def test_the_disk_under_the_source_is_refused() -> None:
    assert "source or the staging" in guard.refusals(BLANK, all_disks=[BLANK], protected=["sdx"])[0]


def test_the_disk_of_this_system_is_refused() -> None:
    name = inventory.disk_under(Path("/"))
    if not name:
        pytest.skip("the root file system here is on no disk of its own")
    disks = inventory.list_disks()
    system = next(disk for disk in disks if disk.name == name)
    assert guard.refusals(system, all_disks=disks)


def test_an_image_is_named_by_its_file_or_by_what_is_given(tmp_path: Path) -> None:
    made = target.parse(f"{tmp_path}/WD-77.img", image_bytes=128 << 20)
    assert (made.serial, made.size_bytes, target.is_blank(made)) == ("WD-77", 128 << 20, True)
    assert target.parse(f"{tmp_path}/WD-77.img,serial=OTHER9").serial == "OTHER9"


def test_a_missing_image_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        target.parse(f"{tmp_path}/none.img")


@pytest.mark.parametrize("serial", ["a", "../../etc", "with space", "x" * 41, "-x1"])
def test_a_serial_that_is_no_serial_is_refused(tmp_path: Path, serial: str) -> None:
    with pytest.raises(UsageError):
        target.parse(f"{tmp_path}/a.img,serial={serial}", image_bytes=128 << 20)


def test_what_is_neither_disk_nor_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises((DiskRefused, UsageError)):
        target.parse(f"{tmp_path},serial=FOLDER1")
    with pytest.raises(DiskRefused):
        target.parse("/dev/null,serial=NULL1")


def test_an_image_that_was_swapped_after_it_was_confirmed_is_refused(tmp_path: Path) -> None:
    confirmed = target.parse(f"{tmp_path}/WD-77.img", image_bytes=128 << 20)
    confirmed.path.unlink()
    confirmed.path.write_bytes(b"precious" * 512)
    with pytest.raises(DiskRefused, match="nothing was written"):
        target.open_claimed(confirmed)
    assert confirmed.path.read_bytes() == b"precious" * 512
