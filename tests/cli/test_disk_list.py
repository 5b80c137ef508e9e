"""`disk list` and `disk show`, as a user sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import machines
import pytest
from support import diskprep, diskprep_json, need_root, run

from diskprep.cli import disks as commands
from diskprep.disk import inventory, target


class Shown(Protocol):
    def __call__(self, name: str, *, as_json: bool = False) -> tuple[str, str]: ...


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    need_root()
    run("truncate", "-s", "128M", tmp_path / "disk.img")
    node = run("losetup", "--find", "--show", tmp_path / "disk.img").strip()
    yield node
    run("losetup", "--detach", node)


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """Runs `disk list` on a fixture machine; returns stdout and stderr."""

    def run_on(name: str, *, as_json: bool = False) -> tuple[str, str]:
        machine = machines.load(name, tmp_path / name).machine
        listed = inventory.list_disks(machine)
        monkeypatch.setattr(commands.inventory, "list_disks", lambda *_, **__: listed)
        monkeypatch.setattr(commands.content, "look", lambda disk: None)
        commands.list_disks(json=as_json)
        streams = capsys.readouterr()
        return streams.out, streams.err

    return run_on


@pytest.mark.root
def test_a_list_says_of_each_disk_what_it_is_and_what_may_be_done(loop: str) -> None:
    run("mkfs.ext4", "-q", "-L", "photos", loop)
    out, err = diskprep("disk", "list")
    row = next(line for line in out.splitlines() if line.startswith(f"{loop} "))
    assert row.split()[-2:] == ["yes", "no"]
    block = out.split(f"\n{loop}\n")[1].split("\n\n")[0]
    assert "ext4 'photos'" in block
    assert "may be erased" in block
    assert "does not take it: an image file" in block
    assert err.startswith("next: diskprep disk prepare STAGING")


@pytest.mark.root
def test_the_same_as_one_document(loop: str) -> None:
    document = diskprep_json("disk", "list")
    (found,) = (disk for disk in document["disks"] if disk["node"] == loop)
    assert (found["bus"], found["size_bytes"], found["refusals"]) == ("loop", 128 << 20, [])
    assert found["service"] == {
        "taken": False,
        "reasons": ["an image file, not a SATA drive"],
        "warnings": [],
    }
    assert document["drives_per_job"] == 10
    assert diskprep_json("disk", "show", loop) == found


@pytest.mark.root
def test_one_disk_is_shown_with_everything_that_is_known(loop: str) -> None:
    out, err = diskprep("disk", "show", loop)
    assert "512 bytes, 512 on the medium" in out
    assert "nothing known" in out
    assert err == f"next: diskprep disk prepare STAGING {loop},serial=NUMBER --container-sas-file FILE\n"


def test_a_disk_that_is_not_there_is_told() -> None:
    _, err = diskprep("disk", "show", "WD-NOWHERE1", code=10)
    assert "there is no disk WD-NOWHERE1" in err
    assert "disk list" in err


def test_reasons_stand_below_the_table(show: Shown) -> None:
    out, err = show("plain")
    table, *blocks = out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["/dev/sda", "/dev/sdb", "/dev/sdc"]
    assert "SSD SATA III" in table
    assert "HDD 5400 SATA III" in table
    assert "no: the system is on it; sda2 is mounted at /; sda1 is mounted" in blocks[0]
    assert blocks[1].splitlines()[2:] == ["  erase:     may be erased", "  service:   takes it"]
    assert blocks[-1] == "2 of 3 disks may be erased; 2 of these the service takes, 10 in a job\n"
    assert err == "next: diskprep disk prepare STAGING WD-WCC7K1234567 --container-sas-file FILE\n"


def test_names_that_could_steer_a_terminal_are_shown_escaped(show: Shown) -> None:
    out, _ = show("odd-serials")
    assert "\x01" not in out
    assert "AB\\x01CD12" in out


@pytest.mark.parametrize("name", ["bridge-contradicts", "odd-serials", "raspberry", "virtual"])
def test_every_machine_makes_one_document(name: str, show: Shown) -> None:
    out, _ = show(name, as_json=True)
    for disk in json.loads(out)["disks"]:
        assert isinstance(disk["serial"], str)
        assert isinstance(disk["refusals"], list)
        assert {"source", "serial", "by_bridge"} == set(disk["claims"][0]) if disk["claims"] else True


def test_what_a_command_is_given_is_found_by_serial(tmp_path: Path) -> None:
    machine = machines.load("plain", tmp_path).machine
    assert target.locate("ZGY0A1B2", machine) == (Path("/dev/sdc"), None)
    assert target.locate("ZGY0A1B2,serial=X", machine) == (Path("/dev/sdc"), "X")
    assert target.locate("wwn-0x5000c500a1b2c3d4", machine)[0] == Path("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4")
