"""What must never be erased is refused, and nothing overrides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import need_root, run
from test_plan import seal_of

from diskprep.disk import guard, inventory, target
from diskprep.disk.plan import Offer, make_plan, require_complete
from diskprep.errors import DiskprepError, DiskRefused, DisksInsufficient, NotFound, UsageError

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
    disks, under = inventory.list_disks(), inventory.disks_under(Path("/"))
    system = next((disk for disk in disks if disk.name in under), None)
    if system is None:
        pytest.skip("the root file system here is on no disk of its own")
    assert guard.refusals(system, all_disks=disks)


def test_an_image_is_named_by_its_file_or_by_what_is_given(tmp_path: Path) -> None:
    made = target.parse(f"{tmp_path}/WD-77.img", image_bytes=128 << 20)
    assert (made.serial, made.size_bytes, made.blank) == ("WD-77", 128 << 20, True)
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


def test_an_image_with_a_byte_anywhere_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "WD-77.img"
    target.parse(str(path), image_bytes=128 << 20)
    with path.open("r+b") as stream:
        stream.seek(100 << 20)
        stream.write(b"x")
    assert not target.parse(str(path)).blank


def test_one_image_under_two_serials_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    target.parse(f"{path},serial=S1", image_bytes=128 << 20)
    (tmp_path / "b.img").hardlink_to(path)
    for second in (path, tmp_path / "b.img"):
        with pytest.raises(UsageError, match="are one disk"):
            target.parse_all([f"{path},serial=S1", f"{second},serial=S2"], image_bytes=None, protected=())
    with pytest.raises(UsageError, match="the serial S1"):
        target.parse_all([f"{path},serial=S1"] * 2, image_bytes=None, protected=())


def test_an_image_inside_what_is_to_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "staging/sub").mkdir(parents=True)
    path = tmp_path / "staging/sub/a1.img"
    path.write_bytes(bytes(4096))
    with pytest.raises(DiskRefused, match="to be kept"):
        target.parse(str(path), protected=[tmp_path / "staging"])


def test_a_symbolic_link_to_an_image_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "real.img").write_bytes(bytes(4096))
    (tmp_path / "link.img").symlink_to(tmp_path / "real.img")
    with pytest.raises(DiskRefused, match="symbolic link"):
        target.parse(str(tmp_path / "link.img"))


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskprepError, match="cannot look at"):
        target.parse(f"{tmp_path}/{'x' * 300},serial=LONG1")


@pytest.mark.root
def test_an_image_that_is_attached_or_attached_twice_is_refused(tmp_path: Path) -> None:
    need_root()
    path = tmp_path / "WD-77.img"
    target.parse(str(path), image_bytes=128 << 20)
    first, second = (run("losetup", "--find", "--show", path).strip() for _ in range(2))
    try:
        with pytest.raises(DiskRefused, match="is attached as /dev/loop"):
            target.parse(str(path))
        with pytest.raises(DiskRefused, match="attached to one file"):
            target.parse(f"{first},serial=S1")
        run("losetup", "--detach", second)
        with pytest.raises(DiskRefused, match="to be kept"):
            target.parse(f"{first},serial=S1", protected=[tmp_path])
        assert target.parse(f"{first},serial=S1").serial == "S1"
    finally:
        run("losetup", "--detach", second, ok=False)
        run("losetup", "--detach", first)


@pytest.mark.root
def test_a_loop_device_that_was_attached_anew_after_it_was_confirmed_is_refused(tmp_path: Path) -> None:
    need_root()
    for name in ("one", "two"):
        run("truncate", "-s", "128M", tmp_path / name)
    loop = run("losetup", "--find", "--show", tmp_path / "one").strip()
    try:
        confirmed = target.parse(f"{loop},serial=S1")
        run("losetup", "--detach", loop)
        run("losetup", loop, tmp_path / "two")
        with pytest.raises(DiskRefused, match="nothing was written"):
            target.open_claimed(confirmed)
    finally:
        run("losetup", "--detach", loop)


def test_two_disks_of_one_size_are_planned_alike_in_any_order() -> None:
    seal = seal_of([20 << 20] * 6)
    offers = [Offer(serial=serial, size_bytes=128 << 20) for serial in ("S1", "S2")]
    assert make_plan(seal, offers) == make_plan(seal, offers[::-1])


def test_a_pack_too_large_for_a_small_disk_is_refused_before_anything_is_written() -> None:
    with pytest.raises(DisksInsufficient):
        require_complete(make_plan(seal_of([60_000_000]), [Offer(serial="S1", size_bytes=110 << 20)]))
