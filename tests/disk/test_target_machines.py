"""No combination of options gets a disk that must not be erased opened; one that may be is found by all its names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import machines
import pytest

from diskprep.disk import inventory, target
from diskprep.errors import DiskprepError, DiskRefused, NotFound, UsageError
from diskprep.volume import device


class _Opened(Exception):
    """A device would have been opened now."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Instead of opening anything the path is kept: a fixture machine has no devices."""
    paths: list[Path] = []

    def note(path: Path, *_: object) -> None:
        paths.append(path)
        raise _Opened

    for door in ("open_for_reading", "open_for_writing", "create_image"):
        monkeypatch.setattr(device, door, note)
    return paths


def _spellings(fixture: machines.Fixture, name: str) -> Iterator[str]:
    """Everything a user may write for a device: its node, its serial, its links."""
    yield str(fixture.machine.node(name))
    facts = inventory.facts_of(fixture.machine.node(name), fixture.machine)
    if facts.serial:
        yield facts.serial
    for alias in facts.aliases:
        yield alias
        yield f"/dev/disk/by-id/{alias}"
    if label := fixture.machine.labels.get(name):
        yield f"/dev/mapper/{label}"


@pytest.mark.parametrize("name", machines.NAMES)
def test_no_combination_of_options_opens_a_disk_that_must_not_be_erased(
    name: str, tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = machines.load(name, tmp_path / "root")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    disks = [disk.name for disk in inventory.list_disks(fixture.machine)]
    nodes = {fixture.machine.node(disk) for disk in [*disks, *fixture.refused] if disk not in fixture.erasable}
    free = next((serial for serial in fixture.erasable.values() if serial), "WD-WCC7K9999999")
    tried = 0
    for disk in {*disks, *fixture.refused} - set(fixture.erasable):
        options = itertools.product(_spellings(fixture, disk), ("", ",serial=", f",serial={free}"), (None, 128 << 20))
        for spelling, serial, image_bytes in options:
            tried += 1
            with pytest.raises((DiskprepError, _Opened)):
                target.parse(
                    spelling + serial, image_bytes=image_bytes, protected=fixture.protected, machine=fixture.machine
                )
    assert nodes.isdisjoint(opened)
    assert all(str(path)[0] != "/" for path in opened), "at most an image file would have been created here"
    assert tried or not nodes


@pytest.mark.parametrize("name", machines.NAMES)
def test_a_disk_that_may_be_erased_is_found_by_each_of_its_names(
    name: str, tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = machines.load(name, tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    for disk, serial in fixture.erasable.items():
        given = "" if serial else ",serial=IMAGE-1"
        for spelling in _spellings(fixture, disk):
            opened.clear()
            with pytest.raises(_Opened):
                target.parse(spelling + given, protected=fixture.protected, machine=fixture.machine)
            assert [fixture.machine.device_name(str(path)) for path in opened] == [disk]


def test_a_serial_that_is_another_disks_is_refused(tmp_path: Path, opened: list[Path]) -> None:
    fixture = machines.load("plain", tmp_path)
    with pytest.raises(DiskRefused, match="reports the serial WD-WCC7K1234567, not ZGY0A1B2"):
        target.parse("/dev/sdb,serial=ZGY0A1B2", machine=fixture.machine)
    assert opened == []


def test_a_name_that_is_a_file_and_a_serial_is_not_guessed(
    tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = machines.load("plain", tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    Path("ZGY0A1B2").write_bytes(b"an image")
    with pytest.raises(UsageError, match="is a file here and the serial of /dev/sdc"):
        target.parse("ZGY0A1B2", machine=fixture.machine)
    with pytest.raises(_Opened):
        target.parse("./ZGY0A1B2", machine=fixture.machine)


def test_a_device_that_is_not_there_is_never_made_as_an_image(tmp_path: Path, opened: list[Path]) -> None:
    fixture = machines.load("plain", tmp_path)
    for argument in ("/dev/sdz", "/dev/disk/by-id/ata-NONE", "/dev/mapper/none"):
        with pytest.raises(NotFound, match="no device"):
            target.parse(argument, image_bytes=128 << 20, machine=fixture.machine)
    assert opened == []


def test_two_disks_with_the_serial_that_was_typed_are_told(tmp_path: Path) -> None:
    fixture = machines.load("duplicate-serials", tmp_path)
    with pytest.raises(DiskRefused, match="/dev/sdb and /dev/sdc have the same serial"):
        target.parse("AA00000000000489", machine=fixture.machine)
