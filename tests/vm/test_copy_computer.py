"""Two blank SATA disks are prepared by our wheel on a Debian with its own kernel; after a restart that kernel opens
them by itself: cryptsetup with dm-crypt, and ntfs3. Nothing of ours reads them then.

The tests are one journey, in the order in which they stand here. Run by `make vm`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import IMAGE, SYSTEM_SERIAL, Answer, Attached, Bus, CopyComputer, powered_on
from support import diskprep, make_tree, run

from diskprep.seal import load_seal

pytestmark = pytest.mark.timeout(1500)

CONTAINER = "imported"
DISKPREP = "/opt/diskprep/bin/diskprep"
PREPARE_SECONDS = 900
_ROOM = 128 << 20  # of a SATA disk, so that the seed takes two

#: What the device mapper says when it is loaded; all else that it says is a complaint. ntfs3 says nothing then.
_GREETINGS = re.compile(r"device-mapper: (core: CONFIG_IMA_DISABLE_HTABLE|uevent: version |ioctl: .* initialised)")
_COMPLAINTS = re.compile(r"ntfs3|device-mapper|dm-\d|dm_?crypt|I/O error|BUG:|Oops|WARNING:|hung task", re.IGNORECASE)


class Desk:
    """The copy computer, its disks, and the folder it shares with this computer. `computer` is None when it is off."""

    def __init__(self, base: Path) -> None:
        self.base, self.exchange = base, base / "exchange"
        self.system = base / "system.img"
        self.sata = [
            Attached(
                image=base / "first", serial="WD-WX11D2345678", model="WDC WD40EFRX-68N32N0", wwn="50014ee2b1234567",
                rotations=5400,
            ),
            Attached(image=base / "second", serial="ZC1A2B3C", model="ST4000NM0035-1V4107", wwn="5000c500a1b2c3d4"),
        ]  # fmt: skip
        self.others = [
            Attached(image=base / "third", serial="4KN00001", model="NATIVE-4K", bus=Bus.SCSI, sector_bytes=4096),
            Attached(image=base / "fourth", serial="POCKET77", model="POCKET-DISK", bus=Bus.USB),
        ]
        self.passphrase = self.exchange / "passphrase"
        self._running = contextlib.ExitStack()
        self.computer: CopyComputer | None = None

    def stage(self) -> None:
        """What happened before: a sealed staging, too large for one of the disks, in the folder that is shared."""
        self.exchange.mkdir()
        self.passphrase.write_text("canary passphrase, long enough\n")
        source = make_tree(self.base / "source", megabytes=2)
        (source / "large").write_bytes(_noise(140 << 20))
        trip = ("--job", "copy-computer", "--storage-account", "account1", "--container", CONTAINER)
        azure = ("--subscription", "11111111-2222-4333-8444-555555555555", "--resource-group", "group")
        secret = ("--passphrase-file", self.passphrase)
        diskprep("stage", source, "--staging", self.exchange / "staging", *trip, *azure, *secret)
        diskprep("datacenter", "sas", self.exchange, CONTAINER)
        shutil.copytree(IMAGE / "wheel", self.exchange / "wheel")
        run("cp", "--sparse=always", "--reflink=auto", IMAGE / "system.img", self.system)
        for disk in [*self.sata, *self.others]:
            with disk.image.open("wb") as image:
                image.truncate(_ROOM)

    def power_on(self, *disks: Attached) -> CopyComputer:
        self.power_off()
        scratch = self.base / f"run-{len(list(self.base.glob('run-*')))}"
        self.computer = self._running.enter_context(powered_on(self.system, disks, self.exchange, scratch=scratch))
        return self.computer

    def power_off(self) -> None:
        self.computer = None
        self._running.close()

    def diskprep(self, *arguments: str, code: int = 0, seconds: float = 120) -> Answer:
        assert self.computer is not None, "the copy computer is off: an earlier test failed"
        return self.computer.run(DISKPREP, *arguments, code=code, seconds=seconds)

    def listed(self) -> dict[str, dict[str, Any]]:
        """`disk list` by serial."""
        return {disk["serial"]: disk for disk in self.diskprep("disk", "list", "--json").document["disks"]}

    def prepare(self, *disks: str, code: int = 0) -> Answer:
        """Prepare disks of these serials, as an unattended run does."""
        found = self.listed()
        nodes = [found[serial]["node"] for serial in disks]
        confirmed = [word for serial in disks for word in ("--confirm-serial", serial)]
        sas = ("--container-sas-file", f"/exchange/{CONTAINER}.sas")
        words = ("disk", "prepare", "/exchange/staging", *nodes, *sas, *confirmed, "--json", "--quiet")
        return self.diskprep(*words, code=code, seconds=PREPARE_SECONDS)

    def read(self, disk: Attached) -> dict[str, str]:
        """SHA-256 by path of all files of a prepared disk, as the kernel reads them; nothing is written to it."""
        assert self.computer is not None, "the copy computer is off: an earlier test failed"
        staging = ("--staging", self.exchange / "staging", "--passphrase-file", self.passphrase)
        password = diskprep("disk", "key", disk.serial, *staging)[0]
        partition, name = f"/dev/disk/by-id/wwn-0x{disk.wwn}-part1", f"opened-{disk.serial}"
        self.computer.run("cryptsetup", "bitlkOpen", "--readonly", partition, name, stdin=password)
        self.computer.run("mount", "--mkdir", "-t", "ntfs3", "-o", "ro", f"/dev/mapper/{name}", f"/mnt/{name}")
        hashed = (
            f"cd /mnt/{name} && find . -path './System Volume Information' -prune -o -type f -exec sha256sum {{}} +"
        )
        lines = self.computer.run("sh", "-c", hashed, seconds=300).out.splitlines()
        return {path.removeprefix("./"): digest for digest, path in (line.split("  ", 1) for line in lines)}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    desk.stage()
    try:
        yield desk
    finally:
        desk.power_off()


def test_01_the_wheel_is_installed_without_a_network(desk: Desk) -> None:
    computer = desk.power_on(*desk.sata, *desk.others)
    (wheel,) = (desk.exchange / "wheel").iterdir()
    pip = ("/opt/diskprep/bin/pip", "--quiet")
    computer.run(*pip, "install", "--no-index", f"/exchange/wheel/{wheel.name}", seconds=300)
    assert "prepare" in desk.diskprep("disk", "--help").out


def test_02_sata_disks_are_found_as_they_identify_themselves_and_the_service_takes_them(desk: Desk) -> None:
    found = desk.listed()
    for disk in desk.sata:
        told = found[disk.serial]
        assert (told["model"], told["bus"], told["wwn"]) == (disk.model, "sata", disk.wwn)
        assert (told["size_bytes"], told["sector_bytes"], told["rotation_rpm"]) == (_ROOM, 512, disk.rotations)
        assert told["refusals"] == []
        assert told["service"]["taken"] is True


def test_03_disks_that_the_service_does_not_take_are_listed_with_the_reason(desk: Desk) -> None:
    found = {disk["model"]: disk for disk in desk.diskprep("disk", "list", "--json").document["disks"]}
    for disk, reason in zip(desk.others, ("4096", "USB"), strict=True):
        told = found[disk.model]
        assert told["service"]["taken"] is False
        assert reason in " ".join(told["service"]["reasons"])
        assert told["refusals"] != []
    usb = found[desk.others[1].model]
    assert usb["serial"] == "", "the number of a USB device is not taken for the drive's"


def test_04_the_disk_that_the_system_is_on_is_refused(desk: Desk) -> None:
    assert "the system is on it" in desk.listed()[SYSTEM_SERIAL]["refusals"]
    said = desk.prepare(SYSTEM_SERIAL, code=20).err
    assert "must not be erased" in said
    assert "the system is on it" in said


def test_05_two_blank_disks_are_prepared_in_one_call_and_no_other_is_written(desk: Desk) -> None:
    done = desk.prepare(*(disk.serial for disk in desk.sata)).document["disks"]
    assert {disk["serial"] for disk in done} == {disk.serial for disk in desk.sata}
    assert [disk.image.stat().st_blocks for disk in desk.others] == [0, 0]


def test_06_after_a_restart_the_kernel_opens_both_and_every_file_is_what_the_seal_says(desk: Desk) -> None:
    computer = desk.power_on(*reversed(desk.sata))
    seal = load_seal(desk.exchange / "staging/seal.json")
    sealed = {f"repository/{file.name}": file.sha256 for file in seal.files}
    packs = sorted(f"repository/{file.name}" for file in seal.data_packs)
    found = {disk.serial: desk.read(disk) for disk in desk.sata}
    for files in found.values():
        files.pop("DriveManifest.xml")
        assert files == {path: sealed.get(path) for path in files}
        assert set(files) & set(packs)
    assert sorted(path for files in found.values() for path in files if path in packs) == packs
    assert computer.run("dmsetup", "ls", "--target", "crypt").out.count("opened-") == 2
    assert computer.run("findmnt", "--noheadings", "--types", "ntfs3", "--output", "SOURCE").out.count("opened-") == 2


def test_07_the_kernel_has_nothing_to_complain_about(desk: Desk) -> None:
    assert desk.computer is not None, "the copy computer is off: an earlier test failed"
    lines = desk.computer.run("dmesg").out.splitlines()
    assert sum(bool(_GREETINGS.search(line)) for line in lines) >= 2, "the kernel's messages begin before the disks"
    assert [line for line in lines if _COMPLAINTS.search(line) and not _GREETINGS.search(line)] == []


def test_08_ntfsfix_finds_nothing_to_mend(desk: Desk) -> None:
    assert desk.computer is not None, "the copy computer is off: an earlier test failed"
    for disk in desk.sata:
        said = desk.computer.run("ntfsfix", "--no-action", f"/dev/mapper/opened-{disk.serial}").out
        assert "processed successfully" in said
        assert not re.search(r"FAILED|corrupt|error", said, re.IGNORECASE), said


def _noise(count: int) -> bytes:
    """Bytes that do not compress, the same each time."""
    return hashlib.shake_128(b"copy computer").digest(count)
