"""On every fixture machine what is in use is refused, and what is free may be erased."""

from __future__ import annotations

from pathlib import Path

import machines
import pytest

from diskprep.disk import guard, inventory


@pytest.mark.parametrize("name", machines.NAMES)
def test_what_must_not_be_erased_is_refused_for_the_right_reason(name: str, tmp_path: Path) -> None:
    fixture = machines.load(name, tmp_path)
    disks = {disk.name: disk for disk in inventory.list_disks(fixture.machine)}
    under = frozenset(n for path in fixture.protected for n in inventory.disks_under(path, fixture.machine))
    for device, words in fixture.refused.items():
        facts = disks.get(device) or inventory.facts_of(fixture.machine.node(device), fixture.machine)
        reasons = "; ".join(guard.refusals(facts, all_disks=list(disks.values()), protected=under))
        for word in words:
            assert word in reasons, f"{device}: {reasons or 'may be erased'}"


@pytest.mark.parametrize("name", machines.NAMES)
def test_what_is_free_may_be_erased_and_has_its_serial(name: str, tmp_path: Path) -> None:
    fixture = machines.load(name, tmp_path)
    disks = inventory.list_disks(fixture.machine)
    under = frozenset(n for path in fixture.protected for n in inventory.disks_under(path, fixture.machine))
    free = {d.name: d.serial for d in disks if not guard.refusals(d, all_disks=disks, protected=under)}
    assert free == fixture.erasable


@pytest.mark.parametrize("name", machines.NAMES)
def test_a_list_has_whole_disks_with_a_medium_only(name: str, tmp_path: Path) -> None:
    fixture = machines.load(name, tmp_path)
    disks = inventory.list_disks(fixture.machine)
    assert [disk.name for disk in disks] == sorted({disk.name for disk in disks})
    assert all(disk.size_bytes and not disk.is_partition for disk in disks)
    assert {disk.bus for disk in disks} <= {"sata", "usb", "nvme", "sas", "mmc", "virtio", "xen", "loop"} | (
        {"network", "iscsi", "scsi"} if name in {"virtual", "many-disks"} else set()
    )


def test_hidden_paths_boot_areas_and_optical_drives_are_no_disks(tmp_path: Path) -> None:
    names = {
        name: [disk.name for disk in inventory.list_disks(machines.load(name, tmp_path / name).machine)]
        for name in ("nvme-multipath", "raspberry", "small-and-empty")
    }
    assert names == {
        "nvme-multipath": ["nvme0n1", "nvme1n1", "sda"],
        "raspberry": ["mmcblk0", "sda"],
        "small-and-empty": ["sda", "sdb"],
    }


def test_there_are_at_least_forty_machines() -> None:
    assert len(machines.NAMES) >= 40


def test_a_machine_without_anything_has_no_disks(tmp_path: Path) -> None:
    assert inventory.list_disks(machines.Machine(tmp_path)) == []
