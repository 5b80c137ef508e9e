"""Other people's BitLocker readers open our disks with the recovery password and see the very bytes that we see."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pybde
import pytest
from support import need, need_root, run

from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import create_image, open_for_reading, open_for_writing
from diskprep.volume.format import format_disk, open_disk
from diskprep.volume.ntfs import Filler, SourceFile

MIB = 1024 * 1024
FILES = {
    "repository/config": 155,
    "repository/keys/empty": 0,
    "repository/keys/one": 1,
    "repository/index/resident": 700,
    "repository/data/00/exact": 4 * MIB,
    "repository/data/00/more": 4 * MIB + 1,
    "repository/data/01/large": 11 * MIB + 12345,
    **{f"repository/snapshots/s{number:03}": 10 + 37 * number for number in range(150)},
}


def content(name: str) -> bytes:
    return hashlib.shake_128(name.encode()).digest(FILES[name])


def _source(name: str) -> SourceFile:
    def blocks() -> Iterator[bytes]:
        data = content(name)
        for at in range(0, len(data), 4 * MIB):
            yield data[at : at + 4 * MIB]

    return SourceFile(path=name, size_bytes=FILES[name], blocks=blocks)


@dataclass(frozen=True)
class Filled:
    """A disk with the files on it, its volume as a file of its own, and what we read of it."""

    disk: Path
    volume: Path
    plain: Path
    plain_sha256: str
    start_bytes: int
    guid: uuid.UUID
    password: str  # one that was made for this test and opens nothing else


@pytest.fixture(scope="session", params=list(Method))
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("readers")
    disk, password = folder / "disk.img", generate_recovery_password()
    create_image(disk, 96 * MIB)
    with open_for_writing(disk) as device:
        layout = format_disk(
            device,
            method=request.param,
            label="READERS",
            description="host READERS",
            recovery_password=password,
            created=datetime(2025, 6, 7, tzinfo=UTC),
        )
        Filler(open_disk(device, password)).write([_source(name) for name in FILES])
    with open_for_reading(disk) as device:
        (folder / "volume.img").write_bytes(device.pread(layout.size_bytes, layout.start_bytes))
        plain = open_disk(device, Secret(password.reveal())).pread(layout.size_bytes, 0)
    (folder / "plain.img").write_bytes(plain)
    return Filled(
        disk=disk,
        volume=folder / "volume.img",
        plain=folder / "plain.img",
        plain_sha256=hashlib.sha256(plain).hexdigest(),
        start_bytes=layout.start_bytes,
        guid=layout.volume_guid,
        password=password.reveal(),
    )


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_cryptsetup_reads_the_metadata(filled: Filled) -> None:
    dump = run(need("cryptsetup"), "bitlkDump", filled.volume)
    assert str(filled.guid) in dump
    assert "VMK protected with recovery passphrase" in dump
    assert "host READERS" in dump


def test_cryptsetup_takes_the_recovery_password_and_no_other(filled: Filled) -> None:
    argv = [need("cryptsetup"), "bitlkOpen", "--test-passphrase", str(filled.volume)]
    for password, good in ((filled.password, True), (generate_recovery_password().reveal(), False)):
        done = subprocess.run(argv, input=password, text=True, capture_output=True, timeout=120, check=False)
        assert (done.returncode == 0) is good, done.stderr


def test_dislocker_decrypts_the_whole_disk_to_the_bytes_we_see(filled: Filled, tmp_path: Path) -> None:
    out = tmp_path / "plain.img"
    run(need("dislocker-file"), "-V", filled.disk, "-O", str(filled.start_bytes), f"-p{filled.password}", "--", out)
    assert sha256(out) == filled.plain_sha256


def test_libbde_decrypts_the_volume_to_the_bytes_we_see(filled: Filled) -> None:
    volume = pybde.volume()
    volume.set_recovery_password(filled.password)
    volume.open(str(filled.volume))
    try:
        assert not volume.is_locked()
        digest, size = hashlib.sha256(), volume.get_size()
        for at in range(0, size, 4 * MIB):
            digest.update(volume.read_buffer_at_offset(min(4 * MIB, size - at), at))
    finally:
        volume.close()
    assert digest.hexdigest() == filled.plain_sha256


def test_blkid_knows_the_volume(filled: Filled) -> None:
    assert 'TYPE="BitLocker"' in run(need("blkid"), "-p", filled.volume)


def test_ntfsfix_finds_nothing_to_fix(filled: Filled) -> None:
    said = run(need("ntfsfix"), "-n", filled.plain)
    assert "Checking the alternate boot sector... OK" in said
    assert "processed successfully" in said


def test_the_sleuth_kit_reads_every_file_byte_for_byte(filled: Filled, tmp_path: Path) -> None:
    """Through dislocker's decryption, so that nothing of ours takes part in the reading."""
    out = tmp_path / "plain.img"
    run(need("dislocker-file"), "-V", filled.volume, f"-p{filled.password}", "--", out)
    facts = run(need("fsstat"), "-f", "ntfs", out)
    assert "Volume Name: READERS" in facts
    listed = {}
    for line in run(need("fls"), "-f", "ntfs", "-r", "-F", "-p", out).splitlines():
        kind, _, rest = line.partition(" ")
        inode, _, name = rest.partition(":\t")
        if kind == "r/r" and name in FILES:
            listed[name] = inode
    assert set(listed) == set(FILES)
    for name, inode in listed.items():
        found = subprocess.run(["icat", "-f", "ntfs", out, inode], capture_output=True, timeout=120, check=True).stdout
        assert found == content(name), name


def test_a_disk_with_our_regions_shows_them_as_hidden_system_files(filled: Filled) -> None:
    names = run(need("fls"), "-f", "ntfs", "-r", "-p", filled.plain)
    for part in ("e40ad34d-dae9-4bc7-95bd-b16218c10f72}.1", "24e6f0ae-6a00-4f73-984b-75ce9942852d}"):
        line = next(line for line in names.splitlines() if part in line and "System Volume Information/" in line)
        inode = line.partition(" ")[2].partition(":")[0].split("-")[0]
        detail = run("istat", "-f", "ntfs", filled.plain, inode)
        assert "Hidden" in detail
        assert "System" in detail
        assert "Non-Resident" in detail


@pytest.mark.root
def test_a_loop_device_mounted_through_dislocker_and_ntfs_3g_shows_every_file(filled: Filled, tmp_path: Path) -> None:
    need_root()
    need("ntfs-3g")
    clear, mount = tmp_path / "clear", tmp_path / "mount"
    clear.mkdir()
    mount.mkdir()
    size = str(filled.plain.stat().st_size)
    options = ["--offset", str(filled.start_bytes), "--sizelimit", size, "--read-only"]
    loop = run("losetup", *options, "-f", "--show", filled.disk).strip()
    try:
        run(need("cryptsetup"), "bitlkOpen", "--test-passphrase", loop, stdin=filled.password)
        run(need("dislocker-fuse"), "-r", "-V", loop, f"-p{filled.password}", "--", clear)
        try:
            run("mount", "-t", "ntfs-3g", "-o", "ro", clear / "dislocker-file", mount)
            try:
                found = {str(p.relative_to(mount)): p for p in mount.rglob("*") if p.is_file()}
                seen = {name: path for name, path in found.items() if not name.startswith("System Volume")}
                assert set(seen) == set(FILES)
                for name, path in seen.items():
                    assert path.read_bytes() == content(name), name
            finally:
                run("umount", mount)
        finally:
            run("umount", clear)
    finally:
        run("losetup", "-d", loop)
