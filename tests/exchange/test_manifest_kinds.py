"""Manifests with page blobs, and with files of metadata and properties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import block_of, parse_manifest

from diskprep.errors import DataDamaged
from diskprep.exchange import manifest as m
from diskprep.secrets import Secret

HEAD = m.ManifestHead(drive_id="WD-123", container_sas=None, account_key=Secret("a2V5"), client_creator="tool")
MD5 = m.manifest_hash(b"x")
META = m.SideFile(path="\\meta\\a & b.xml", md5=MD5)
PROPS = m.SideFile(path="\\meta\\props.xml", md5=MD5)


def pages(*ranges: tuple[int, int], length: int = 4 << 20, name: str = "vm.vhd", **fields: Any) -> m.ManifestBlob:
    return m.ManifestBlob(
        blob_path=f"backup/{name}",
        file_path="\\vm.vhd",
        length_bytes=length,
        pages=tuple(m.PageRange(offset=offset, length=size, md5=MD5) for offset, size in ranges),
        **fields,
    )


def block(name: str, **fields: Any) -> m.ManifestBlob:
    return m.ManifestBlob(
        blob_path=f"backup/{name}", file_path="\\x", length_bytes=1, blocks=(block_of(0, b"x"),), **fields
    )


def document(*blobs: m.ManifestBlob) -> bytes:
    return b"".join(m.stream_manifest(HEAD, blobs))


def read(data: bytes) -> list[m.ManifestBlob]:
    return list(m.open_manifest([data]))


def test_page_blobs_and_side_files_are_read_back_as_written() -> None:
    both, one = m.Extras(metadata=META, properties=PROPS), m.Extras(metadata=META)
    blobs = [
        pages((0, 512), (4096, 1 << 20)),
        pages(name="empty", length=0),
        pages(name="sparse", length=1 << 40),
        block("a", extras=one),
        block("b", defaults=both),
        block("c", defaults=both, extras=m.Extras(properties=PROPS)),
        pages(name="d", defaults=one),
        block("e"),
    ]
    assert read(document(*blobs)) == blobs
    assert parse_manifest(document(*blobs)).blobs == tuple(blobs)


def test_elements_stand_in_the_published_order() -> None:
    both = m.Extras(metadata=META, properties=PROPS)
    root = ET.fromstring(document(pages((0, 512), extras=both, defaults=both), block("a", defaults=both), block("b")))
    lists = root.findall("Drive/BlobList")
    assert [[child.tag for child in each] for each in lists] == [
        ["MetadataPath", "PropertiesPath", "Blob", "Blob"],
        ["Blob"],
    ]
    assert [child.tag for child in lists[0][2]] == [
        "BlobPath",
        "FilePath",
        "Length",
        "ImportDisposition",
        "PageRangeList",
        "MetadataPath",
        "PropertiesPath",
    ]
    assert lists[0][2][4][0].attrib == {"Offset": "0", "Length": "512", "Hash": MD5}
    assert (lists[0][0].text, lists[0][0].attrib) == (META.path, {"Hash": MD5})


def test_a_blobs_own_file_goes_before_that_of_its_list() -> None:
    own = m.SideFile(path="\\own.xml", md5=MD5)
    blob = block("a", defaults=m.Extras(metadata=META, properties=PROPS), extras=m.Extras(metadata=own))
    assert (blob.metadata, blob.properties) == (own, PROPS)


@pytest.mark.parametrize("version", [b"2011-MM-DD", b"2018-10-01", b"", b"9999"])
def test_any_version_is_read(version: bytes) -> None:
    assert read(document(block("a")).replace(b"2014-11-01", version)) == [block("a")]


def test_a_list_with_an_id_and_a_hash_with_a_space_are_read() -> None:
    data = document(block("a", extras=m.Extras(metadata=META)))
    data = data.replace(b"<BlobList>", b'<BlobList Id="session#1-0">').replace(b'Hash="', b'Hash=" ')
    assert read(data) == [block("a", extras=m.Extras(metadata=META))]


def test_the_account_key_is_not_shown() -> None:
    stream = m.open_manifest([document(block("a"))])
    assert stream.head.account_key == Secret("a2V5")
    assert "a2V5" not in repr(stream.head)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'Offset="4096"', b'Offset="4097"'),
        (b'Offset="4096"', b'Offset="0"'),
        (b'Offset="4096"', b'Offset="4193792"'),  # its end lies behind the blob's
        (b'Length="1024"', b'Length="1000"'),
        (b'Length="1024"', b'Length="0"'),
        (b'Length="1024"', b'Length="4194816"'),
        (b"<Length>4194304</Length>", b"<Length>4194305</Length>"),
        (b"<Length>4194304</Length>", b"<Length>1099511628288</Length>"),
        (b"</PageRangeList>", b"</PageRangeList><BlockList></BlockList>"),
        (b"</PageRangeList>", b"</PageRangeList><PageRangeList></PageRangeList>"),
        (b"<PageRangeList>", b'<PageRangeList><Block Offset="0" Length="1"/>'),
        (b'Hash="' + MD5.encode() + b'"/>', b"/>"),
        (b"\\meta\\props.xml", b"\\..\\props.xml"),
        (b"\\meta\\props.xml", b"meta"),
        (b"\\meta\\props.xml", b""),
        (b'<PropertiesPath Hash="' + MD5.encode(), b'<PropertiesPath Hash="'),
        (b"</PropertiesPath>", b"</PropertiesPath><PropertiesPath>\\x</PropertiesPath>"),
        (b"</PropertiesPath>", b"<Inner/></PropertiesPath>"),
        (b"</BlobList>", b'<MetadataPath Hash="' + MD5.encode() + b'">\\late.xml</MetadataPath></BlobList>'),
    ],
)
def test_what_breaks_a_rule_is_refused(old: bytes, new: bytes) -> None:
    data = document(pages((0, 512), (4096, 1024), extras=m.Extras(properties=PROPS)))
    assert old in data
    with pytest.raises(DataDamaged):
        read(data.replace(old, new))


def test_more_page_ranges_than_allowed_are_refused() -> None:
    count = m.PAGE_RANGES_LIMIT + 1
    entry = b'<PageRange Offset="%d" Length="512" Hash="' + MD5.encode() + b'"/>'

    def chunks() -> Iterator[bytes]:
        head, tail = document(pages(length=1 << 30)).split(b"</PageRangeList>")
        yield head
        for first in range(0, count, 1000):
            yield b"".join(entry % (number * 512) for number in range(first, min(first + 1000, count)))
        yield b"</PageRangeList>" + tail

    with pytest.raises(DataDamaged, match=str(m.PAGE_RANGES_LIMIT)):
        list(m.open_manifest(chunks()))


def test_values_refuse_what_they_cannot_mean() -> None:
    for fields in ({"length_bytes": 513}, {"blocks": (block_of(0, b"x"),)}):
        with pytest.raises(DataDamaged):
            replace(pages(), **fields)
    with pytest.raises(DataDamaged):
        m.SideFile(path="\\a", md5="x")


@given(st.binary(max_size=300), st.integers(0, 1400), st.integers(0, 30))
def test_any_change_gives_a_manifest_or_damage(noise: bytes, offset: int, cut: int) -> None:
    both = m.Extras(metadata=META, properties=PROPS)
    data = document(pages((0, 512), (4096, 1024), extras=both, defaults=both), block("a"))
    try:
        read(data[:offset] + noise + data[offset + cut :])
    except DataDamaged:
        return
