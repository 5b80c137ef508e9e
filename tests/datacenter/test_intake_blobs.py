"""Blobs of every kind into a container of every kind: what arrives, and which published word is told of it."""

from __future__ import annotations

import os
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobLeaseClient
from drives import MIB, PASSWORD, block_blob, file_path, make_drive, page_blob
from manifests import side_file_of

from diskprep.datacenter.faults import NO_FAULTS, DriveFault, DriveFaults
from diskprep.datacenter.intake_blobs import Copier, Targets
from diskprep.datacenter.intake_log import BlobEntry
from diskprep.datacenter.intake_parts import UNFINISHED
from diskprep.durable import Buffer
from diskprep.errors import NotSignedIn, StorageUnavailable
from diskprep.exchange import manifest as m
from diskprep.secrets import Secret
from diskprep.store import ImportTarget
from diskprep.store.azure import AzureStore
from diskprep.store.directory import DirectoryAccount, DirectoryStore
from diskprep.volume import bitlocker
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk

ONE, TWO, SMALL = os.urandom(5 * MIB + 3), os.urandom(4 * MIB + 512), os.urandom(1000)
PAGES = os.urandom(4 * MIB) + bytes(MIB) + os.urandom(8192)
RANGES = [(0, 4 * MIB), (5 * MIB, 4096), (5 * MIB + 4096, 4096)]
METADATA = b"<Metadata><UploadMethod>disk</UploadMethod><Set>a &amp; b</Set></Metadata>"
OTHER_METADATA = b"<Metadata><Own>1</Own></Metadata>"
PROPERTIES = b"""<Properties><Content-Type>text/plain</Content-Type><Content-MD5>%b</Content-MD5>
<Content-Language>en</Content-Language><Cache-Control>no-cache</Cache-Control></Properties>""" % b64encode(b"m" * 16)
FILES = {
    "one": ONE,
    "two": TWO,
    "small": SMALL,
    "pages": PAGES,
    "empty": b"",
    "folder/inside": b"x",
    "meta.xml": METADATA,
    "own.xml": OTHER_METADATA,
    "props.xml": PROPERTIES,
    "bad.xml": b"<Metadata><a>",
    "bomb.xml": b'<!DOCTYPE x [<!ENTITY a "ha">]><Metadata><b>&a;</b></Metadata>',
    "large.xml": b"<Metadata>" + b" " * 70_000 + b"</Metadata>",
}
RENAME, NO, OVER = m.Disposition.RENAME, m.Disposition.NO_OVERWRITE, m.Disposition.OVERWRITE


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bitlocker.Volume]:
    path = make_drive(tmp_path_factory.mktemp("drive") / "drive.img", FILES)
    with open_for_reading(path) as device:
        yield open_disk(device, PASSWORD)


@pytest.fixture(params=["directory", "azure"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> ImportTarget:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "container")
    return request.getfixturevalue("azurite").fresh_container()  # type: ignore[no-any-return]


Copy = Callable[..., list[BlobEntry]]


@pytest.fixture
def copy(volume: bitlocker.Volume, target: ImportTarget) -> Copy:
    def run(*blobs: m.ManifestBlob, faults: DriveFaults = NO_FAULTS, again: bool = False, to: Any = None) -> Any:
        targets = Targets({"backup": to or target})
        return list(Copier(volume, targets, faults, again=again).copy(blobs))

    return run


def told(entry: BlobEntry) -> tuple[str, str, list[str]]:
    return str(entry.status), str(entry.disposition), [str(part) for part in entry.parts]


def test_page_blobs_arrive_with_zeros_where_the_manifest_has_nothing(copy: Copy, target: ImportTarget) -> None:
    (entry,) = copy(page_blob("pages", PAGES, RANGES))
    assert told(entry) == ("Completed", "Created", ["Completed"] * 3)
    state = target.inspect("pages")
    assert state is not None
    assert (state.is_page_blob, state.size_bytes, dict(state.metadata)) == (True, len(PAGES), {})
    assert target.read("pages") == PAGES


def test_a_part_of_the_ranges_leaves_the_rest_zero(copy: Copy, target: ImportTarget) -> None:
    copy(page_blob("pages", PAGES, RANGES[1:2]))
    expected = bytearray(len(PAGES))
    expected[5 * MIB : 5 * MIB + 4096] = PAGES[5 * MIB : 5 * MIB + 4096]
    assert target.read("pages") == bytes(expected)


def test_a_damaged_page_range_is_not_written_and_the_blob_stays_marked(copy: Copy, target: ImportTarget) -> None:
    blob = page_blob("pages", PAGES, RANGES)
    assert blob.pages is not None
    blob = replace(blob, pages=(replace(blob.pages[0], md5="0" * 32), *blob.pages[1:]))
    (entry,) = copy(blob)
    assert told(entry) == ("CompletedWithErrors", "Created", ["Corrupted", "Completed", "Completed"])
    state = target.inspect("pages")
    assert state is not None
    assert UNFINISHED in state.metadata
    assert target.read("pages", 0, 4096) == bytes(4096)


def test_a_file_shorter_than_its_page_ranges_is_told(copy: Copy) -> None:
    longer = page_blob("pages", PAGES + bytes(512), [*RANGES, (len(PAGES), 512)])
    assert told(copy(longer)[0])[2] == ["Completed"] * 3 + ["FileUnexpectedEnd"]


@pytest.mark.parametrize("there", ["block", "page"])
@pytest.mark.parametrize("kind", ["block", "page"])
def test_the_dispositions_for_every_pair_of_kinds(copy: Copy, target: ImportTarget, there: str, kind: str) -> None:
    def put(name: str) -> None:
        if there == "block":
            target.write(name, [b"old"])
        else:
            target.create_pages(name, 512, {})

    def blob(name: str, wish: m.Disposition) -> m.ManifestBlob:
        fields = {"file_path": file_path("two"), "disposition": wish}
        if kind == "block":
            return block_blob(name, TWO, **fields)
        return page_blob(name, TWO, [(0, 4 * MIB), (4 * MIB, 512)], **fields)

    old = b"old" if there == "block" else bytes(512)
    for name in ("kept", "replaced", "a/Seattle.jpg", "a/Seattle (2).jpg", "plain"):
        put(name)
    blobs = [blob("kept", NO), blob("replaced", OVER), blob("a/Seattle.jpg", RENAME), blob("plain", RENAME)]
    entries = copy(*blobs)
    assert [entry.disposition for entry in entries] == ["Skipped", "Overwritten", "Renamed", "Renamed"]
    assert {entry.status for entry in entries} == {"Completed"}
    assert [entry.blob_path for entry in entries[2:]] == ["backup/a/Seattle (3).jpg", "backup/plain (2)"]
    for name in ("kept", "a/Seattle.jpg", "a/Seattle (2).jpg", "plain"):
        assert target.read(name) == old
    for name in ("replaced", "a/Seattle (3).jpg", "plain (2)"):
        state = target.inspect(name)
        assert state is not None
        assert (state.is_page_blob, target.read(name)) == (kind == "page", TWO)


def test_two_blobs_of_a_drive_that_end_at_one_name_both_arrive(copy: Copy, target: ImportTarget) -> None:
    target.write("one", [b"old"])
    first = block_blob("one", ONE, disposition=RENAME)
    second = block_blob("one (2)", SMALL, file_path=file_path("small"), disposition=RENAME)
    for _ in range(5):
        entries = copy(first, second)
        assert {entry.status for entry in entries} == {"Completed"}
        assert {target.read(entry.blob_path.removeprefix("backup/")) for entry in entries} == {ONE, SMALL}
    assert target.read("one") == b"old"


def test_a_lease_keeps_a_blob_from_being_replaced(copy: Copy, target: ImportTarget) -> None:
    target.write("small", [b"old"])
    lease: BlobLeaseClient | None = None
    if isinstance(target, AzureStore):
        lease = target._client.get_blob_client("small").acquire_lease()
    else:
        assert isinstance(target, DirectoryStore)
        target.set_lease("small", held=True)
    assert told(copy(block_blob("small", SMALL, disposition=OVER))[0]) == ("LeasePresent", "Cancelled", ["Cancelled"])
    assert copy(block_blob("small", SMALL))[0].disposition == "Skipped"
    assert copy(block_blob("small", SMALL, disposition=RENAME))[0].disposition == "Renamed"
    if lease is not None:
        lease.release()
    elif isinstance(target, DirectoryStore):
        target.set_lease("small", held=False)
    assert copy(block_blob("small", SMALL, disposition=OVER))[0].disposition == "Overwritten"
    assert target.read("small") == SMALL


def extras(metadata: str = "", properties: str = "") -> m.Extras:
    def side(name: str) -> m.SideFile | None:
        return side_file_of(file_path(name), FILES.get(name, b"")) if name else None

    return m.Extras(metadata=side(metadata), properties=side(properties))


@pytest.mark.parametrize("kind", ["block", "page"])
def test_metadata_and_properties_come_from_the_blob_or_else_its_list(
    copy: Copy, target: ImportTarget, kind: str
) -> None:
    common, own = extras("meta.xml", "props.xml"), extras("own.xml")
    if kind == "block":
        blobs = [block_blob("small", SMALL, defaults=common), block_blob("one", ONE, defaults=common, extras=own)]
    else:
        blobs = [
            page_blob("pages", PAGES, RANGES, defaults=common),
            page_blob("other", PAGES, RANGES, file_path=file_path("pages"), defaults=common, extras=own),
        ]
    entries = copy(*blobs)
    assert [(e.status, e.metadata, e.properties) for e in entries] == [("Completed",) * 3] * 2
    first, second = (target.inspect(blob.blob_path.removeprefix("backup/")) for blob in blobs)
    assert first is not None
    assert second is not None
    assert dict(first.metadata) == {"UploadMethod": "disk", "Set": "a & b"}
    assert dict(second.metadata) == {"Own": "1"}
    assert first.properties == second.properties
    assert (first.properties.content_type, first.properties.cache_control) == ("text/plain", "no-cache")
    assert first.properties.content_md5 == b"m" * 16


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("meta.xml", "Completed"),
        ("gone.xml", "FileNotFound"),
        ("folder", "FileAccessDenied"),
        ("bad.xml", "XmlReadFailed"),
        ("bomb.xml", "XmlReadFailed"),
        ("large.xml", "XmlReadFailed"),
        ("props.xml", "XmlReadFailed"),
    ],
)
def test_what_is_wrong_with_a_metadata_file_is_told_and_the_content_arrives(
    copy: Copy, target: ImportTarget, name: str, status: str
) -> None:
    (entry,) = copy(block_blob("small", SMALL, extras=extras(name, "props.xml")))
    assert (entry.metadata, entry.properties) == (status, "Completed")
    assert entry.status == ("Completed" if status == "Completed" else "CompletedWithErrors")
    assert target.read("small", 0, 10) == SMALL[:10]


def test_a_side_file_with_another_hash_is_corrupted_and_cancelled_behind_a_failure(copy: Copy) -> None:
    wrong = m.Extras(properties=m.SideFile(path=file_path("props.xml"), md5="0" * 32))
    fine = extras("meta.xml")
    missing = block_blob("small", SMALL, file_path=file_path("nothing"), extras=wrong, defaults=fine)
    damaged = block_blob("x", b"y" * 1000, file_path=file_path("small"), extras=wrong)
    entries = copy(block_blob("small", SMALL, extras=wrong), missing, damaged)
    assert [(e.status, e.metadata, e.properties) for e in entries] == [
        ("CompletedWithErrors", None, "Corrupted"),
        ("FileNotFound", "Cancelled", "Cancelled"),
        ("CompletedWithErrors", None, "Cancelled"),
    ]


def test_a_folder_in_a_files_place_and_a_foreign_container_are_told(copy: Copy) -> None:
    folder = block_blob("x", b"", file_path=file_path("folder"))
    foreign = replace(block_blob("small", SMALL), blob_path="elsewhere/small")
    unnameable = replace(block_blob("small", SMALL), blob_path="backup/a name of somebody else")
    entries = copy(folder, foreign, unnameable)
    assert [entry.status for entry in entries] == ["FileAccessDenied", "BlobRequestForbidden", "BlobRequestFailed"]


def test_an_account_opens_every_container_and_makes_what_is_missing(volume: bitlocker.Volume, tmp_path: Path) -> None:
    account = DirectoryAccount("a", tmp_path, Secret(b"k" * 32))
    copier = Copier(volume, Targets({}, account), NO_FAULTS, again=False)
    blobs = [replace(block_blob("small", SMALL), blob_path=f"container-{number}/x") for number in range(70)]
    assert {entry.status for entry in copier.copy(blobs)} == {"Completed"}
    assert account.container("container-69").read("x") == SMALL


def test_faults_strike_the_first_files_and_blocks_and_no_more(copy: Copy) -> None:
    faults = DriveFaults(faults=frozenset({DriveFault.FILE_MISSING, DriveFault.BLOCKS_DAMAGED}), files=1, blocks=3)
    pages = page_blob("pages", PAGES, RANGES)
    entries = copy(block_blob("empty", b""), block_blob("small", SMALL), block_blob("one", ONE), pages, faults=faults)
    assert [told(entry) for entry in entries] == [
        ("Completed", "Created", []),
        ("FileNotFound", "Cancelled", ["Cancelled"]),
        ("CompletedWithErrors", "Created", ["Corrupted", "Corrupted"]),
        ("CompletedWithErrors", "Created", ["Corrupted", "Completed", "Completed"]),
    ]


def every_kind() -> list[m.ManifestBlob]:
    return [
        block_blob("one", ONE),
        block_blob("small", SMALL, disposition=RENAME),
        block_blob("two", TWO, disposition=OVER),
        page_blob("pages", PAGES, RANGES, disposition=RENAME, extras=extras("meta.xml")),
        page_blob("more", PAGES, RANGES, file_path=file_path("pages")),
        block_blob("empty", b""),
    ]


def test_what_a_killed_run_brought_counts_as_created_when_the_drive_is_read_again(
    copy: Copy, target: ImportTarget
) -> None:
    target.write("small", [b"was there before"])
    first = copy(*every_kind())
    target.create_pages("more", len(PAGES), {UNFINISHED: "true"})  # it was killed in the middle of this one
    second = copy(*every_kind(), again=True)
    expected = [(e.status, e.disposition, e.blob_path, e.parts, e.metadata) for e in first]
    assert [(e.status, e.disposition, e.blob_path, e.parts, e.metadata) for e in second] == expected
    assert [e.disposition for e in second] == ["Created", "Renamed", "Created", "Created", "Created", "Created"]
    assert sorted(item.name for item in target.list()) == ["empty", "more", "one", "pages", "small", "small (2)", "two"]
    assert target.read("more") == PAGES


def test_without_again_what_is_there_is_another_blob(copy: Copy) -> None:
    copy(*every_kind())
    entries = copy(*every_kind())
    assert [e.disposition for e in entries] == ["Skipped", "Renamed", "Overwritten", "Renamed", "Skipped", "Skipped"]


def test_again_does_not_take_a_different_blob_for_its_own(copy: Copy, target: ImportTarget) -> None:
    target.write("small", [SMALL[:-1] + b"!"])
    target.write("one", [ONE[:-1]])
    entries = copy(block_blob("small", SMALL), block_blob("one", ONE, disposition=OVER), again=True)
    assert [e.disposition for e in entries] == ["Skipped", "Overwritten"]


class Troubled(DirectoryStore):
    """A container in which something happens when a call is made."""

    def __init__(self, root: Path, happens: Callable[[Any, str], None]) -> None:
        super().__init__(root)
        self._happens = happens

    def stage_block(self, name: str, block_id: str, data: Buffer, md5: bytes) -> None:
        self._happens(self, "stage")
        super().stage_block(name, block_id, data, md5)

    def commit_blocks(self, name: str, block_ids: Sequence[str], *, md5: bytes | None = None) -> None:
        self._happens(self, "commit")
        super().commit_blocks(name, block_ids, md5=md5)


def raising(error: Exception, at: str) -> Callable[[Any, str], None]:
    def happens(_store: Any, call: str) -> None:
        if call == at:
            raise error

    return happens


@pytest.mark.parametrize(
    ("happens", "status", "block"),
    [
        (raising(NotSignedIn("expired"), "stage"), "BlobRequestForbidden", "Cancelled"),
        (raising(NotSignedIn("expired"), "commit"), "BlobRequestForbidden", "Uncommitted"),
        (raising(StorageUnavailable("away"), "stage"), "CompletedWithErrors", "BlobRequestFailed"),
        (raising(StorageUnavailable("away"), "commit"), "BlobRequestFailed", "Uncommitted"),
        (lambda store, _call: store.write("small", [b"meanwhile"]), "BlobUnexpectedChange", "Uncommitted"),
    ],
)
def test_what_happens_to_the_container_meanwhile_is_told(
    volume: bitlocker.Volume, tmp_path: Path, happens: Any, status: str, block: str
) -> None:
    store = Troubled(tmp_path, happens)
    (entry,) = Copier(volume, Targets({"backup": store}), NO_FAULTS, again=False).copy([block_blob("small", SMALL)])
    assert (entry.status, [str(part) for part in entry.parts]) == (status, [block])


def test_memory_does_not_follow_the_number_of_blobs(volume: bitlocker.Volume, tmp_path: Path) -> None:
    target = DirectoryStore(tmp_path)
    target.write("small", [b"there"])

    def peak(count: int) -> int:
        copier = Copier(volume, Targets({"backup": target}), NO_FAULTS, again=False)
        tracemalloc.start()
        try:
            blobs = (block_blob("small", SMALL) for _ in range(count))
            assert sum(entry.disposition == "Skipped" for entry in copier.copy(blobs)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)
    assert peak(1500) - peak(150) < 400 << 10  # of readers and stores; the entries alone would be twice that


def test_a_reader_that_stops_early_leaves_no_thread_at_work(volume: bitlocker.Volume, tmp_path: Path) -> None:
    target = DirectoryStore(tmp_path)
    taken = 0

    def blobs() -> Iterator[m.ManifestBlob]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield replace(block_blob("small", SMALL), blob_path=f"backup/{number}")

    with ExitStack() as stack:
        entries = Copier(volume, Targets({"backup": target}), NO_FAULTS, again=False).copy(blobs())
        stack.callback(entries.close)  # type: ignore[attr-defined]
        next(entries)
    assert taken < 20
    assert len(list(target.list())) <= taken
