"""The drive manifest: what we write is the published form; what others wrote is read strictly."""

from __future__ import annotations

import hashlib
import resource
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import DriveManifest, block_of, parse_manifest, write_manifest

from diskprep.errors import DataDamaged
from diskprep.exchange import manifest as m
from diskprep.secrets import Secret

FIXTURES = Path(__file__).parents[2] / "fixtures" / "manifests"
SAS = "backup?sv=1&se=2026-01-01T00%3A00%3A00Z&sig=a%2Bb<'\">&sp=rwdl"


def blob(name: str = "data/ab/abc", sizes: tuple[int, ...] = (4 << 20, 17)) -> m.ManifestBlob:
    blocks, offset = [], 0
    for size in sizes:
        blocks.append(replace(block_of(offset, b"x"), length=size))
        offset += size
    return m.ManifestBlob(
        blob_path=f"backup/{name}",
        file_path="\\repository\\" + name.replace("/", "\\"),
        length_bytes=offset,
        blocks=tuple(blocks),
    )


def manifest(*blobs: m.ManifestBlob) -> DriveManifest:
    return DriveManifest(drive_id="WD-123", container_sas=Secret(SAS), client_creator="tool & co", blobs=blobs)


def test_what_is_written_is_read_back() -> None:
    for value in (manifest(), manifest(blob()), manifest(blob(), blob("b", ()), blob("c", (1,)))):
        data = write_manifest(value)
        assert parse_manifest(data) == value
        assert m.manifest_hash(data) == hashlib.md5(data).hexdigest().upper()


def test_elements_stand_in_the_published_order() -> None:
    root = ET.fromstring(write_manifest(manifest(blob())))
    assert (root.tag, root.attrib) == ("DriveManifest", {"Version": "2014-11-01"})
    drive = root[0]
    assert [child.tag for child in drive] == ["DriveId", "ContainerSas", "ClientCreator", "BlobList"]
    entry = drive[3][0]
    assert [child.tag for child in entry] == ["BlobPath", "FilePath", "Length", "ImportDisposition", "BlockList"]
    assert [entry.findtext(tag) for tag in ("BlobPath", "FilePath", "Length", "ImportDisposition")] == [
        "backup/data/ab/abc",
        "\\repository\\data\\ab\\abc",
        str((4 << 20) + 17),
        "no-overwrite",
    ]
    assert list(entry[4][0].attrib) == ["Offset", "Length", "Id", "Hash"]
    assert drive.findtext("ContainerSas") == SAS


def test_a_block_id_is_the_md5_as_the_original_tool_writes_it() -> None:
    block = block_of(5, b"hello")
    assert block.md5 == "5D41402ABC4B2A76B9719D911017C592"
    assert block.block_id == "MD5/XUFAKrxLKna5cZ2REBfFkg=="


def test_a_manifest_of_another_tool_is_read() -> None:
    found = parse_manifest((FIXTURES / "two-blobs.xml").read_bytes())
    assert found.drive_id == "WD-WMATV123456"
    assert found.container_sas == Secret("backup?sv=2014-02-14&sr=c&sp=rwd&sig=c2lnbmF0dXJl")
    assert [blob.blob_path for blob in found.blobs] == ["backup/dir/a.bin", "backup/empty"]
    assert [blob.disposition for blob in found.blobs] == [m.Disposition.OVERWRITE, m.Disposition.RENAME]
    assert [block.md5[:4] for block in found.blobs[0].blocks] == ["9C8A", "DF54"]


def test_blocks_without_ids_get_them_from_their_hash() -> None:
    data = write_manifest(manifest(blob(sizes=(5,))))
    assert parse_manifest(data.replace(b' Id="MD5/ndTkYSaMgDT1yFZOFVxn9g=="', b"")).blobs == (blob(sizes=(5,)),)


def test_the_credential_is_never_shown() -> None:
    value = manifest(blob())
    assert "sig=" not in repr(value) + str(value)
    with pytest.raises(DataDamaged) as caught:
        parse_manifest(write_manifest(value).replace(b"</ContainerSas>", b"</Wrong>"))
    assert "sig=" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'Offset="4194304"', b'Offset="4194303"'),  # overlap
        (b'Offset="4194304"', b'Offset="4194305"'),  # gap
        (b'Length="17"', b'Length="18"'),
        (b'Length="17"', b'Length="0"'),
        (b'Length="17"', b'Length="-1"'),
        (b'Length="4194304"', b'Length="4194305"'),
        (b'Length="17"', b'Length="99999999999999999999999"'),
        (b"<Length>4194321</Length>", b"<Length>4194320</Length>"),
        (b"<Length>4194321</Length>", b""),
        (b"<Length>4194321</Length>", b"<Length>4194321</Length><Length>4194321</Length>"),
        (b"backup/data/ab/abc", b"backup"),
        (b"backup/data/ab/abc", b"Backup/data/ab/abc"),
        (b"backup/data/ab/abc", b"backup/../other/x"),
        (b"backup/data/ab/abc", b"backup/x."),
        (b"backup/data/ab/abc", b"backup/" + b"x" * 1025),
        (rb"\repository\data\ab\abc", rb"\repository\..\..\etc\passwd"),
        (rb"\repository\data\ab\abc", rb"repository\data"),
        (rb"\repository\data\ab\abc", rb"\C:\x"),
        (rb"\repository\data\ab\abc", rb"\a/b"),
        (rb"\repository\data\ab\abc", rb"\a:stream"),
        (rb"\repository\data\ab\abc", rb"\nul.txt"),
        (rb"\repository\data\ab\abc", rb"\a \b"),
        (rb"\repository\data\ab\abc", rb"\a" * 200),
        (rb"\repository\data\ab\abc", b"\\a&#27;[2J"),
        (b"no-overwrite", b"burn"),
        (b'Hash="', b'Hash="Z'),
        (b'Id="', b'Id="?'),
        (b"<DriveId>WD-123</DriveId>", b""),
        (b"<DriveId>WD-123</DriveId>", b"<DriveId>WD 123</DriveId>"),
        (b"<ContainerSas>", b"<StorageAccountKey>a</StorageAccountKey><ContainerSas>"),
        (b"<BlobList>", b"<BlobList><Rubbish/>"),
        (b"</Drive>", b""),
        (b"</DriveManifest>", b"</DriveManifest><DriveManifest/>"),
        (b'encoding="UTF-8"', b'encoding="UTF-99"'),
        (b"<Drive>", b"<Drive>\xff"),
        (b"<Drive>", b"<Drive>\0"),
    ],
)
def test_what_breaks_a_rule_is_refused(old: bytes, new: bytes) -> None:
    data = write_manifest(manifest(blob()))
    assert old in data
    with pytest.raises(DataDamaged):
        parse_manifest(data.replace(old, new))


def test_a_blob_named_twice_is_refused() -> None:
    data = write_manifest(manifest(blob("a"), blob("b")))
    with pytest.raises(DataDamaged, match="twice"):
        parse_manifest(data.replace(b"backup/b", b"backup/a"))


def test_more_blocks_than_allowed_are_refused() -> None:
    good = blob("a", (1,) * m.BLOCKS_LIMIT)
    assert len(parse_manifest(write_manifest(manifest(good))).blobs[0].blocks) == 50_000
    extra = b'<Block Offset="50000" Length="1" Id="MD5/ndTkYSaMgDT1yFZOFVxn9g==" Hash="%s"/></BlockList>' % (b"0" * 32)
    with pytest.raises(DataDamaged, match="50000"):
        parse_manifest(write_manifest(manifest(good)).replace(b"</BlockList>", extra))


HOSTILE = {
    "laughs": b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]><DriveManifest>&b;</DriveManifest>',
    "external": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><DriveManifest>&a;</DriveManifest>',
    "dtd": b'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><DriveManifest/>',
    "attribute": b'<DriveManifest Version="' + b"x" * (100 << 20) + b'"/>',
    "text": b"<DriveManifest><Drive><DriveId>" + b"x" * (100 << 20),
    "deep": b"<DriveManifest>" + b"<Drive>" * 100_000,
    "comment": b"<DriveManifest><!--" + b"x" * (100 << 20),
    "wide": b"<DriveManifest " + b" ".join(b'a%d=""' % i for i in range(300_000)) + b"/>",
    "empty": b"",
    "utf16": "<DriveManifest/>".encode("utf-16")[:-1],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_at_once_and_cheaply(name: str) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataDamaged):
        parse_manifest(HOSTILE[name])
    assert time.process_time() - started < 0.25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


@given(st.binary(max_size=400), st.integers(0, 600), st.integers(0, 20))
def test_any_change_gives_a_manifest_or_damage(noise: bytes, offset: int, cut: int) -> None:
    data = write_manifest(manifest(blob(sizes=(3,))))
    changed = data[:offset] + noise + data[offset + cut :]
    try:
        parse_manifest(changed)
    except DataDamaged:
        return


def test_a_hundred_thousand_blobs_take_seconds() -> None:
    blobs = tuple(blob(f"data/{i % 256:02x}/{i:064x}", (4 << 20,) * 3 + (9,)) for i in range(20_000))
    started = time.process_time()
    data = write_manifest(manifest(*blobs))
    assert parse_manifest(data).blobs == blobs
    assert time.process_time() - started < 20  # a fifth of it; generous for a loaded machine
