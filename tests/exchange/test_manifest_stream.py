"""A manifest as a stream: the same bytes, the same rules, in portions; memory does not follow the number of blobs."""

from __future__ import annotations

import hashlib
import random
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from manifests import block_of, parse_manifest

from diskprep.errors import DataDamaged
from diskprep.exchange import manifest as m
from diskprep.exchange import xml
from diskprep.exchange.distinct import Names
from diskprep.secrets import Secret

HEAD = m.ManifestHead(drive_id="WD-123", container_sas=Secret("backup?sv=1&sig=a"), client_creator="tool & co")
_BLOCK = block_of(0, b"x")


def blobs(count: int) -> Iterator[m.ManifestBlob]:
    for number in range(count):
        yield m.ManifestBlob(
            blob_path=f"backup/data/a&b/{number:064x}",
            file_path=f"\\repository\\data\\a&b\\{number:064x}",
            length_bytes=1,
            blocks=(_BLOCK,),
        )


def whole(count: int) -> bytes:
    return b"".join(m.stream_manifest(HEAD, blobs(count)))


def test_the_written_form_is_pinned() -> None:
    data = whole(2)
    assert hashlib.sha256(data).hexdigest() == "9408dbfa7254313bc12d2233812b8f0884b74f40199c5664cd0a28c2a823ec40"


def test_chunks_are_neither_tiny_nor_large_also_for_one_blob_of_many_blocks() -> None:
    long = m.ManifestBlob(
        blob_path="backup/long",
        file_path="\\long",
        length_bytes=m.BLOCKS_LIMIT,
        blocks=tuple(m.Block(offset=i, length=1, block_id=_BLOCK.block_id, md5=_BLOCK.md5) for i in range(50_000)),
    )
    sizes = [len(chunk) for chunk in m.stream_manifest(HEAD, [long])]
    assert len(sizes) > 10
    assert {size >> 18 for size in sizes[:-1]} == {1}


@pytest.mark.parametrize("step", [1, 7, 4096, 65_536, 1 << 22])
def test_how_the_bytes_are_cut_does_not_matter(step: int) -> None:
    data = whole(40 if step < 100 else 900)
    stream = m.open_manifest(memoryview(data)[at : at + step] for at in range(0, len(data), step))
    assert stream.head == HEAD
    assert list(stream) == list(blobs(40 if step < 100 else 900))
    assert (stream.size_bytes, stream.hash) == (len(data), m.manifest_hash(data))


def test_the_head_is_known_before_the_blobs_are_read() -> None:
    data, taken = whole(5000), 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for at in range(0, len(data), 10_000):
            taken += 1
            yield data[at : at + 10_000]

    stream = m.open_manifest(chunks())
    assert stream.drive_id == "WD-123"
    assert taken == 1
    first = next(iter(stream))
    assert first.blob_path.endswith("0" * 64)
    assert taken <= 2


def test_what_is_wrong_at_the_end_is_told_at_the_end() -> None:
    for damage in (b"", b"</DriveManifest><more/>", b"</DriveManifest>\0"):
        data = whole(3).replace(b"</DriveManifest>", damage)
        stream = m.open_manifest([data[:-20], data[-20:]])
        with pytest.raises(DataDamaged):
            list(stream)


@pytest.mark.parametrize("document", [b"", b"<DriveManifest/>", b"<DriveManifest><Drive></Drive></DriveManifest>"])
def test_without_a_drive_nothing_is_opened(document: bytes) -> None:
    with pytest.raises(DataDamaged):
        m.open_manifest([document])


@pytest.mark.parametrize(
    "late",
    [
        b"<ContainerSas>backup?sig=other</ContainerSas></Drive>",
        b"<DriveId>WD-123</DriveId></Drive>",
        b"</Drive><Drive></Drive>",
        b"</Drive><Drive><BlobList></BlobList></Drive>",
    ],
)
def test_values_of_the_drive_stand_before_the_blobs(late: bytes) -> None:
    with pytest.raises(DataDamaged):
        parse_manifest(whole(1).replace(b"</Drive>", late))


def test_several_lists_of_blobs_are_one() -> None:
    data = whole(2).replace(b"</Blob>\n<Blob>", b"</Blob></BlobList><BlobList><Blob>")
    assert parse_manifest(data).blobs == tuple(blobs(2))


def test_a_name_that_comes_again_much_later_is_refused_both_ways() -> None:
    def again() -> Iterator[m.ManifestBlob]:
        yield from blobs(8_000)
        yield next(blobs(1))

    with pytest.raises(DataDamaged, match="twice"):
        for _ in m.stream_manifest(HEAD, again()):
            pass
    data = whole(8_000)
    last = f"{7_999:064x}".encode()
    with pytest.raises(DataDamaged, match="twice"):
        list(m.open_manifest([data.replace(b"backup/data/a&amp;b/" + last, b"backup/data/a&amp;b/" + b"0" * 64)]))


def test_names_are_told_apart_exactly() -> None:
    names, rng, seen = Names(), random.Random(4), set[str]()
    for _ in range(30_000):
        name = f"n{rng.randrange(8_000)}"
        assert names.add(name) is (name not in seen)
        seen.add(name)


def test_a_name_takes_few_bytes() -> None:
    tracemalloc.start()
    try:
        names = Names()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(21_800):  # just before the table grows again
            names.add(str(number))
        held, peak = (value - before for value in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert held < 21_800 * 50
    assert peak < 21_800 * 50


def test_memory_does_not_follow_the_number_of_blobs() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in m.open_manifest(m.stream_manifest(HEAD, blobs(count))):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(500), peak(3000)
    assert large - small < 2500 * 2 * 80 + (256 << 10)  # the names of both sides, and a little


def test_names_that_the_parser_would_remember_are_limited() -> None:
    for tag in (b"<Block%d/>", b'<Block a%d=""/>', b'<Block xmlns:a%d="u"/>'):
        data = b"<x>" + b"".join(tag % number for number in range(100_000)) + b"</x>"
        started = time.process_time()
        with pytest.raises(DataDamaged, match="names"):
            xml.parse(data, "it", lambda *_: None, lambda *_: None, limit_bytes=1 << 30)
        assert time.process_time() - started < 0.25


def test_a_document_longer_than_the_limit_is_refused_however_it_comes() -> None:
    data = b"<a>" + b"<b/>" * 40_000 + b"</a>"
    xml.parse(data, "it", lambda *_: None, lambda *_: None, limit_bytes=len(data))
    with pytest.raises(DataDamaged, match="limit"):
        for _ in xml.read([data[:9], data[9:]], "it", lambda *_: None, lambda *_: None, limit_bytes=len(data) - 1):
            pass


def test_the_limit_fits_the_manifest_of_20_tb() -> None:
    per_blob = (len(whole(2000)) - len(whole(1000))) / 1000
    per_block = len(f'<Block Offset="{1 << 24}" Length="{1 << 22}" Id="{_BLOCK.block_id}" Hash="{_BLOCK.md5}"/>\n')
    assert 1_200_000 * per_blob + 5_000_000 * per_block < m.SIZE_LIMIT_BYTES
