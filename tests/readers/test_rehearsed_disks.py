"""Other people's tools open what a whole rehearsal left: the disks, the staging, the vault."""

from __future__ import annotations

import hashlib
import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import diskprep, make_tree, need, need_root, run

START_BYTES = 1 << 20  # of the partition


@dataclass(frozen=True)
class Disk:
    serial: str
    image: Path
    volume: Path  # the partition alone
    password: str


@dataclass(frozen=True)
class Kept:
    source: Path
    root: Path
    disks: tuple[Disk, ...]

    def restic(self, where: str, *arguments: str | Path) -> str:
        environment = {"RESTIC_PASSWORD_FILE": str(self.root / "passphrase"), "TZ": os.environ.get("TZ", "")}
        if not environment["TZ"]:
            del environment["TZ"]
        return run(need("restic"), "--no-cache", "-r", self.root / where, *arguments, env=environment)

    def pack(self, path_on_disk: str) -> bytes:
        return (self.root / "staging" / path_on_disk).read_bytes()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    base = tmp_path_factory.mktemp("readers")
    source, root = make_tree(base / "source", megabytes=6), base / "work"
    out, _err = diskprep("rehearse", source, "--workdir", root, "--keep", "--json")
    disks = []
    for disk in json.loads(out)["disks"]:
        arguments = ("--staging", root / "staging", "--passphrase-file", root / "passphrase")
        password = diskprep("disk", "key", disk["serial"], *arguments)[0].strip()
        image, volume = Path(disk["image"]), base / f"{disk['serial']}.volume"
        size = _partition_bytes(image)
        run("dd", f"if={image}", f"of={volume}", "bs=1M", "skip=1", f"count={size >> 20}", "conv=sparse", "status=none")
        disks.append(Disk(serial=disk["serial"], image=image, volume=volume, password=password))
    return Kept(source=source, root=root, disks=tuple(disks))


def _partition_bytes(image: Path) -> int:
    told = run(need("sgdisk"), "-i", "1", image)
    first, last = (int(re.findall(rf"{which} sector: (\d+)", told)[0]) for which in ("First", "Last"))
    assert first * 512 == START_BYTES
    return (last - first + 1) * 512


def test_the_partition_table_has_no_problems(kept: Kept) -> None:
    for disk in kept.disks:
        assert "No problems found" in run(need("sgdisk"), "-v", disk.image)


def test_cryptsetup_reads_the_metadata_and_opens_with_the_password_alone(kept: Kept) -> None:
    for disk in kept.disks:
        dump = run(need("cryptsetup"), "bitlkDump", disk.volume)
        assert re.search(r"Cipher name:\s+aes", dump)
        assert re.search(r"Cipher key:\s+512 bits", dump)
        run(need("cryptsetup"), "bitlkOpen", "--test-passphrase", disk.volume, stdin=disk.password)
        wrong = disk.password[:-6] + ("000011" if not disk.password.endswith("000011") else "000022")
        refused = run(
            need("sh"),
            "-c",
            'cryptsetup bitlkOpen --test-passphrase "$1" && echo OPENED',
            "sh",
            disk.volume,
            stdin=wrong,
            ok=False,
        )
        assert "OPENED" not in refused


def test_dislocker_and_the_sleuth_kit_read_every_file_as_it_was_staged(kept: Kept, tmp_path: Path) -> None:
    for disk in kept.disks:
        plain = tmp_path / f"{disk.serial}.plain"
        run(need("dislocker-file"), "-V", disk.volume, f"-p{disk.password}", "--", plain)
        assert "NTFS" in run(need("fsstat"), plain)
        assert "Processing of" in run(need("ntfsfix"), "-n", plain)
        names = []
        for line in run(need("fls"), "-r", "-p", "-F", plain).splitlines():
            found = re.fullmatch(r"r/r (\d+)-128-\d+:\t(.+)", line)
            if found is None or found[2].startswith(("$", "System Volume Information/")):
                continue
            content = tmp_path / "content"
            run("sh", "-c", 'icat "$1" "$2" >"$3"', "sh", plain, found[1], content)
            names.append(found[2])
            if found[2] == "DriveManifest.xml":
                _check_manifest(content, disk.serial)
            else:
                assert content.read_bytes() == kept.pack(found[2]), found[2]
        packs = [name for name in names if re.fullmatch(r"repository/data/[0-9a-f]{2}/[0-9a-f]{64}", name)]
        indexes = [name for name in names if re.fullmatch(r"repository/index/[0-9a-f]{64}", name)]
        assert sorted(names) == sorted([*packs, *indexes, "DriveManifest.xml"])
        assert packs
        assert indexes
        plain.unlink()


def _check_manifest(path: Path, serial: str) -> None:
    drive = ET.parse(path).getroot().find("Drive")  # the standard library's parser: we wrote this file
    assert drive is not None
    assert drive.findtext("DriveId") == serial
    blobs = list(drive.iter("Blob"))
    assert blobs
    for blob in blobs:
        end = 0
        for block in blob.iter("Block"):
            assert int(block.attrib["Offset"]) == end
            end += int(block.attrib["Length"])
        assert end == int(blob.findtext("Length", "-1"))


@pytest.mark.root
def test_dislocker_fuse_and_ntfs_3g_mount_the_whole_disk(kept: Kept, tmp_path: Path) -> None:
    need_root()
    unlocked, mounted = tmp_path / "unlocked", tmp_path / "mounted"
    unlocked.mkdir()
    mounted.mkdir()
    for disk in kept.disks:
        run(
            need("dislocker-fuse"), "-r", "-O", str(START_BYTES), "-V", disk.image, f"-p{disk.password}", "--", unlocked
        )
        try:
            run(need("ntfs-3g"), "-o", "ro", unlocked / "dislocker-file", mounted)
            try:
                packs = [path for path in (mounted / "repository/data").rglob("*") if path.is_file()]
                assert packs
                for path in packs:
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            finally:
                run("umount", mounted)
        finally:
            run("umount", unlocked)


def test_restic_checks_and_restores_the_staging_and_continues_it(kept: Kept, tmp_path: Path) -> None:
    assert "no errors were found" in kept.restic("staging", "check", "--read-data")
    kept.restic("staging", "restore", "latest", "--target", tmp_path / "out")
    restored = tmp_path / "out" / kept.source.relative_to("/")
    skip = ("--exclude=fifo", "--exclude=socket")
    assert run("diff", "-r", "--no-dereference", *skip, kept.source, restored) == ""
    said = kept.restic("staging", "backup", kept.source)
    assert re.search(r"Files:\s+0 new,\s+0 changed,", said)
    added = re.search(r"Added to the repo(?:sitory)?: ([\d.]+) (\w+)", said)
    assert added is not None
    assert added[2] in ("B", "KiB")
    assert float(added[1]) < 64 or added[2] == "B"


def test_restic_checks_and_restores_every_recovery_point_of_the_vault(kept: Kept, tmp_path: Path) -> None:
    assert "no errors were found" in kept.restic("vault", "check", "--read-data")
    points = json.loads(kept.restic("vault", "snapshots", "--json"))
    assert len(points) == 3
    for point in points:
        kept.restic("vault", "restore", point["id"], "--target", tmp_path / point["short_id"])
    first = tmp_path / points[0]["short_id"] / kept.source.relative_to("/")
    ours = kept.root / "restored" / kept.source.relative_to("/")
    assert run("diff", "-r", "--no-dereference", "--exclude=fifo", first, ours) == ""
