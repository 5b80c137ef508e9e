"""A whole drive: how each thing that can be wrong with it ends, what is logged, and what a hostile one can do."""

from __future__ import annotations

import base64
import itertools
import os
import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from copylogs import DriveLog, parse_copy_log
from drives import MIB, PASSWORD, SERIAL, block_blob, file_path, make_drive, page_blob, source
from manifests import DriveManifest, parse_manifest, side_file_of, write_manifest
from support import need_root, run

from diskprep import clock
from diskprep.datacenter import intake_log
from diskprep.datacenter.faults import NO_FAULTS, DriveFault, DriveFaults
from diskprep.datacenter.intake import DriveOrder, DriveResult, copy_drive
from diskprep.datacenter.intake_log import BlobEntry, DriveLogs, Spool, without_credential
from diskprep.durable import Buffer
from diskprep.errors import StorageUnavailable
from diskprep.exchange import manifest as m
from diskprep.exchange.copylog import BlobStatus, BlockStatus, DispositionStatus
from diskprep.secrets import Secret
from diskprep.store import Account
from diskprep.store.directory import DirectoryAccount, DirectoryStore
from diskprep.volume.device import open_for_writing
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Filler

KEY = b"k" * 32
ONE, SMALL = os.urandom(5 * MIB + 3), os.urandom(1000)
PAGES = os.urandom(8192)
METADATA = b"<Metadata><Set>first</Set></Metadata>"
FILES = {"one": ONE, "small": SMALL, "pages": PAGES, "meta.xml": METADATA}


class Drive:
    """One drive for all tests of this module: each puts its manifest on it under another name."""

    def __init__(self, path: Path) -> None:
        self.path = make_drive(path, FILES)
        self._numbers = itertools.count()
        self._device = open_for_writing(path)
        self.volume = open_disk(self._device, PASSWORD)

    def add(self, data: bytes) -> str:
        name = f"Manifest{next(self._numbers)}.xml"
        Filler(self.volume).write([source(name, data)])
        return f"\\{name}"

    def close(self) -> None:
        self._device.close()


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    made = Drive(tmp_path_factory.mktemp("drive") / "drive.img")
    yield made
    made.close()


@pytest.fixture
def account(tmp_path: Path) -> DirectoryAccount:
    return DirectoryAccount("backups", tmp_path / "account", Secret(KEY))


def blobs() -> list[m.ManifestBlob]:
    side = m.Extras(metadata=side_file_of(file_path("meta.xml"), METADATA))
    return [
        block_blob("one", ONE),
        block_blob("small", SMALL, defaults=side),
        page_blob("pages", PAGES, [(0, 4096), (4096, 4096)], extras=side),
    ]


def manifest(account: Account, entries: Sequence[m.ManifestBlob] | None = None, **fields: Any) -> bytes:
    sas = account.container_sas("backup", clock.now() + timedelta(days=1))
    value = DriveManifest(
        drive_id=SERIAL,
        container_sas=sas,
        client_creator="test",
        blobs=tuple(blobs() if entries is None else entries),
    )
    return write_manifest(replace(value, **fields))


Try = Callable[..., DriveResult]


@pytest.fixture
def attempt(drive: Drive, account: DirectoryAccount) -> Try:
    """Put a manifest on the drive, and have it read."""

    def go(
        data: bytes | None = None, *, faults: DriveFaults = NO_FAULTS, to: Account | None = None, **fields: Any
    ) -> DriveResult:
        data = manifest(account) if data is None else data
        order: dict[str, Any] = {
            "serial": SERIAL,
            "path": drive.path,
            "recovery_password": PASSWORD,
            "manifest_file": fields.get("manifest_file") or drive.add(data),
            "manifest_hash": m.manifest_hash(data),
            "diagnostics_path": "waimportexport",
        }
        seen: list[tuple[int, int]] = []
        before = drive.path.stat().st_mtime_ns
        result = copy_drive(
            DriveOrder(**(order | fields)), to or account, lambda done, total: seen.append((done, total)), faults
        )
        assert drive.path.stat().st_mtime_ns == before, "a drive is only read"
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        return result

    return go


def log_of(result: DriveResult) -> DriveLog:
    return parse_copy_log(result.verbose_log.read())


def fault(*faults: DriveFault, **counts: int) -> DriveFaults:
    return DriveFaults(faults=frozenset(faults), **counts)


def test_a_good_drive_with_blobs_of_every_kind(attempt: Try, account: DirectoryAccount) -> None:
    result = attempt()
    assert (result.status, result.bytes_succeeded) == ("Completed", len(ONE) + len(SMALL) + len(PAGES))
    assert result.error_log is None
    container = account.container("backup")
    assert [container.read(name) for name in ("one", "small", "pages")] == [ONE, SMALL, PAGES]
    states = [container.inspect(name) for name in ("small", "pages")]
    assert [dict(state.metadata) for state in states if state] == [{"Set": "first"}] * 2


def test_the_verbose_log_has_the_published_form_for_every_kind(attempt: Try) -> None:
    root = ET.fromstring(attempt().verbose_log.read())
    assert (root.tag, root.attrib, root.findtext("DriveId")) == ("DriveLog", {"Version": "2014-11-01"}, SERIAL)
    assert [child.tag for child in root] == ["DriveId", "Blob", "Blob", "Blob", "Status"]
    one, small, pages = root.findall("Blob")
    assert [child.tag for child in one] == ["BlobPath", "FilePath", "Length", "ImportDisposition", "BlockList"]
    assert list(one[4][0].attrib) == ["Offset", "Length", "Id", "Hash", "Status"]
    assert [child.tag for child in pages][4:] == ["PageRangeList", "Metadata"]
    assert list(pages[4][0].attrib) == ["Offset", "Length", "Hash", "Status"]
    assert {each.get("Status") for each in root.iter("PageRange")} == {"Completed"}
    assert (small.find("Metadata/GlobalPath") is not None, small.find("Metadata/Path")) == (True, None)
    assert (pages.find("Metadata/GlobalPath"), pages.findtext("Metadata/Path")) == (None, file_path("meta.xml"))


def test_the_error_log_has_what_failed_and_no_credential_is_copied(attempt: Try, account: DirectoryAccount) -> None:
    data = manifest(account)
    result = attempt(data, faults=fault(DriveFault.BLOCKS_DAMAGED))
    assert result.error_log is not None
    assert [blob.blob_path for blob in parse_copy_log(result.error_log.read()).blobs] == ["backup/one"]
    sas = parse_manifest(data).container_sas
    assert sas is not None
    assert result.manifest_copy is not None
    kept = result.manifest_copy.read()
    assert b"sig=" not in kept
    shown = sas.reveal().replace("&", "&amp;").encode()
    assert kept == data.replace(shown, b"*******") != data
    assert attempt(data, keep_manifest=False).manifest_copy is None


@pytest.mark.parametrize(
    ("struck", "status"),
    [
        (DriveFault.UNREADABLE, "DiskOperationFailed"),
        (DriveFault.WRONG_SERIAL, "ManifestDriveIdMismatch"),
        (DriveFault.WRONG_KEY, "BitLockerKeyInvalid"),
        (DriveFault.MANIFEST_EDITED, "ManifestCorrupted"),
        (DriveFault.BLOCKS_DAMAGED, "CompletedWithErrors"),
        (DriveFault.FILE_MISSING, "CompletedWithErrors"),
        (DriveFault.LATE, "Completed"),
    ],
)
def test_each_fault_ends_with_its_published_status(
    attempt: Try, account: DirectoryAccount, struck: DriveFault, status: str
) -> None:
    result = attempt(faults=fault(struck))
    assert (result.status, log_of(result).status) == (status, status)
    assert (result.error_log is None) == (status == "Completed")
    arrived = {item.name for item in account.container("backup").list()}
    assert arrived == {
        "Completed": {"one", "small", "pages"},
        "CompletedWithErrors": {"small", "pages"},
    }.get(status, set())
    if status not in ("Completed", "CompletedWithErrors"):
        assert (result.bytes_succeeded, result.container_name, result.manifest_copy) == (0, "waimportexport", None)


def test_several_faults_are_counted(attempt: Try) -> None:
    result = attempt(faults=fault(DriveFault.BLOCKS_DAMAGED, DriveFault.FILE_MISSING, blocks=2, files=1))
    assert [blob.status for blob in log_of(result).blobs] == [
        "FileNotFound",
        "CompletedWithErrors",
        "CompletedWithErrors",
    ]


def test_an_account_key_opens_every_container_and_logs_go_to_the_diagnostics(
    attempt: Try, account: DirectoryAccount
) -> None:
    key = Secret(base64.b64encode(KEY).decode())
    elsewhere = replace(block_blob("small", SMALL), blob_path="elsewhere/small")
    data = manifest(account, [block_blob("one", ONE), elsewhere], container_sas=None, account_key=key)
    result = attempt(data, diagnostics_path="logs/of/it")
    assert (result.status, result.container_name) == ("Completed", "logs")
    assert account.container("backup").read("one") == ONE
    assert account.container("elsewhere").read("small") == SMALL
    assert result.manifest_copy is not None
    assert key.reveal().encode() not in result.manifest_copy.read()


@pytest.mark.parametrize("key", ["d3Jvbmc=", "no key at all", "é"])
def test_a_key_that_is_not_the_accounts_is_forbidden(attempt: Try, account: DirectoryAccount, key: str) -> None:
    data = manifest(account, container_sas=None, account_key=Secret(key))
    assert attempt(data).status == "BlobRequestForbidden"


@pytest.mark.parametrize("path", ["", "..", "UPPER/x", "a"])
def test_diagnostics_that_name_no_container_go_to_the_usual_one(attempt: Try, path: str) -> None:
    result = attempt(diagnostics_path=path, manifest_file="\\Other.xml")
    assert (result.status, result.container_name) == ("ManifestNotFound", "waimportexport")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("\\" + "x" * 255, "ManifestNameTooLong"),
        ("\\" + "x" * 254, "ManifestNotFound"),
        ("DriveManifest.xml", "ManifestNameInvalid"),
        ("\\a\0b", "ManifestNameInvalid"),
        ("\\..\\..\\etc\\passwd", "ManifestNameInvalid"),
        ("\\repository", "ManifestAccessDenied"),
        ("\\repository\\one", "ManifestCorrupted"),
    ],
)
def test_a_manifest_name_that_leads_nowhere(attempt: Try, name: str, status: str) -> None:
    assert attempt(manifest_file=name).status == status


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "laughs": lambda data: data.replace(b"<DriveManifest", b'<!DOCTYPE x [<!ENTITY a "&b;&b;">]><DriveManifest', 1),
    "deep": lambda _data: b"<DriveManifest>" + b"<Drive>" * 1_000_000,
    "endless name": lambda data: data.replace(b"backup/one", b"backup/" + b"x" * (8 << 20)),
    "leaves the volume": lambda data: data.replace(b"\\repository\\one", b"\\..\\..\\one"),
    "control characters": lambda data: data.replace(b"\\repository\\one", b"\\a&#27;[2Jb"),
    "another container": lambda data: data.replace(b"backup/one", b"../one"),
    "lying length": lambda data: data.replace(f"<Length>{len(ONE)}".encode(), b"<Length>999999999999"),
    "wrong at its end": lambda data: data.replace(b"</DriveManifest>", b"<More/></DriveManifest>"),
    "cut": lambda data: data[:-30],
    "nothing": lambda _data: b"",
    "zeros": lambda data: bytes(len(data)),
    "no text": lambda _data: os.urandom(5000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_a_format_error_and_brings_nothing(
    attempt: Try, account: DirectoryAccount, name: str
) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result = attempt(HOSTILE[name](manifest(account)))
    assert result.status == "ManifestFormatInvalid"
    assert list(account.container("backup").list()) == []
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_manifest_larger_than_any_is_not_read(
    attempt: Try, monkeypatch: pytest.MonkeyPatch, account: DirectoryAccount
) -> None:
    monkeypatch.setattr(m, "SIZE_LIMIT_BYTES", 500)
    assert attempt().status == "ManifestFormatInvalid"


def test_lengths_that_lie_about_the_file_end_the_blob(attempt: Try, account: DirectoryAccount) -> None:
    huge = m.ManifestBlob(
        blob_path="backup/huge",
        file_path=file_path("small"),
        length_bytes=m.BLOCKS_LIMIT * m.BLOCK_BYTES,
        blocks=tuple(
            m.Block(offset=n * m.BLOCK_BYTES, length=m.BLOCK_BYTES, block_id="AAAA", md5="0" * 32)
            for n in range(m.BLOCKS_LIMIT)
        ),
    )
    started = time.process_time()
    result = attempt(manifest(account, [huge, page_blob("sparse", bytes(512), [], file_path=file_path("small"))]))
    read = log_of(result).blobs
    assert [(blob.status, len(blob.parts)) for blob in read] == [
        ("CompletedWithErrors", m.BLOCKS_LIMIT),
        ("Completed", 0),
    ]
    assert set(read[0].parts) == {"FileUnexpectedEnd"}
    assert time.process_time() - started < 20


def test_a_damaged_file_system_gives_a_status(drive: Drive, tmp_path: Path, attempt: Try) -> None:
    path = tmp_path / "damaged.img"
    path.write_bytes(drive.path.read_bytes())
    with open_for_writing(path) as device:
        open_disk(device, PASSWORD).pwrite(os.urandom(512), 0)
    assert attempt(path=path).status == "VolumeNotNtfs"


def test_two_readings_of_one_drive_bring_the_same(attempt: Try) -> None:
    first = attempt()
    second = attempt(again=True)
    assert log_of(second).blobs == log_of(first).blobs
    assert (second.status, second.bytes_succeeded) == ("Completed", first.bytes_succeeded)
    assert attempt().status == "CompletedWithWarnings"


def test_a_drive_is_imported_into_blob_storage(attempt: Try, azurite: Any, account: DirectoryAccount) -> None:
    name = f"import-{os.urandom(4).hex()}"
    container = azurite.account.container(name)
    sas = azurite.account.container_sas(name, clock.now() + timedelta(hours=1))
    entries = [replace(blob, blob_path=blob.blob_path.replace("backup/", f"{name}/")) for blob in blobs()]
    result = attempt(manifest(account, entries, container_sas=sas), to=azurite.account)
    assert (result.status, result.container_name) == ("Completed", name)
    assert [container.read(each) for each in ("one", "small", "pages")] == [ONE, SMALL, PAGES]
    state = container.inspect("pages")
    assert (state.is_page_blob, dict(state.metadata)) == (True, {"Set": "first"})
    result.verbose_log.store(container, "log.xml")
    assert container.read("log.xml") == result.verbose_log.read()
    by_key = manifest(account, entries, container_sas=None, account_key=azurite.key)
    assert attempt(by_key, to=azurite.account, again=True).status == "Completed"
    wrong = manifest(account, entries, container_sas=None, account_key=Secret(base64.b64encode(b"x" * 64).decode()))
    assert attempt(wrong, to=azurite.account).status == "BlobRequestForbidden"


@pytest.mark.root
def test_a_block_device_is_read_as_an_image_is(drive: Drive, attempt: Try, account: DirectoryAccount) -> None:
    need_root()
    data = manifest(account)
    name = drive.add(data)
    loop = run("losetup", "--find", "--show", "--read-only", drive.path).strip()
    try:
        assert attempt(data, path=Path(loop), manifest_file=name).status == "Completed"
        assert account.container("backup").read("one") == ONE
    finally:
        run("losetup", "--detach", loop)


def test_a_drive_of_very_many_blobs_keeps_few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_log, "_MEMORY_BYTES", 1 << 20)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            logs = DriveLogs(SERIAL)
            for number in range(count):
                blob = replace(block_blob("small", SMALL), blob_path=f"backup/{number}")
                status = BlobStatus.COMPLETED if number % 2 else BlobStatus.IO_FAILED
                logs.add(
                    BlobEntry(
                        blob=blob,
                        status=status,
                        disposition=DispositionStatus.CREATED,
                        blob_path=blob.blob_path,
                        parts=(BlockStatus.COMPLETED,),
                    )
                )
            logs.end()
            assert logs.verbose.size_bytes > count * 300
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(12_000) < 2 << 20  # 5 MB of logs


def test_a_large_log_is_stored_in_blocks_and_whole(tmp_path: Path) -> None:
    spool, store = Spool(), DirectoryStore(tmp_path)
    lines = [b"%09d" % number * 100 for number in range(20_000)]
    for line in lines:
        spool.write(line)
    for name in ("first", "again"):
        spool.store(store, name)
        assert store.read(name) == b"".join(lines)
    Spool().store(store, "empty")
    assert store.read("empty") == b""


def test_a_credential_that_is_not_found_keeps_the_manifest_from_being_copied() -> None:
    assert without_credential(b"<a><ContainerSas >x&amp;y</ContainerSas ></a>") == (
        b"<a><ContainerSas >*******</ContainerSas ></a>"
    )
    assert without_credential("<StorageAccountKey>x</StorageAccountKey>".encode("utf-16")) is None


class Away(DirectoryAccount):
    """An account that cannot be reached."""

    def container(self, name: str) -> Any:
        raise StorageUnavailable(f"cannot open {name}")


def test_an_account_that_is_away_is_the_stand_ins_own_trouble(attempt: Try, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable):
        attempt(to=Away("backups", tmp_path / "away", Secret(KEY)), manifest_file="\\Other.xml")


def test_a_drive_that_fails_in_mid_manifest_keeps_what_was_copied(
    attempt: Try, monkeypatch: pytest.MonkeyPatch, account: DirectoryAccount
) -> None:
    opened = m.open_manifest
    count = 0

    def failing(chunks: Iterator[Buffer]) -> m.ManifestStream:
        nonlocal count
        count += 1
        if count == 1:
            return opened(chunks)
        return opened(chunk.replace(b"</DriveManifest>", b"<!-- -->") for chunk in map(bytes, chunks))

    monkeypatch.setattr(m, "open_manifest", failing)
    result = attempt()
    assert (result.status, result.container_name) == ("ManifestCorrupted", "backup")
    assert [blob.status for blob in log_of(result).blobs] == ["Completed"] * 3
    assert account.container("backup").read("one") == ONE
