"""What must hold of every tree, pack and stream, and what must be noticed of every damaged one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from diskprep.errors import DataDamaged
from diskprep.repository import chunker, codec, pack, quoting, tree
from diskprep.repository.crypto import DataKey
from diskprep.repository.index import Index, encode_index, parse_index
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import FinishedPack, PackWriter

KEY = DataKey(encrypt=b"e" * 32, mac_k=b"k" * 16, mac_r=b"r" * 16)
POLYNOMIAL = 0x3DA3358B4DC173
NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and not set(b"/\0") & set(name)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.integers(-(10**19), 10**20)
IDS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**64 - 1)


@st.composite
def nodes(draw: st.DrawFn) -> tree.Node:
    kind = draw(st.sampled_from(tree.NodeType))
    linked = kind in (tree.NodeType.FILE, tree.NodeType.SYMLINK, tree.NodeType.DEV, tree.NodeType.CHARDEV)
    return tree.Node(
        name=draw(NAMES),
        type=kind,
        mode=draw(st.integers(0, 2**32 - 1)),
        mtime=draw(TIMES),
        atime=draw(TIMES),
        ctime=draw(TIMES),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        user=draw(TEXTS),
        group=draw(TEXTS),
        inode=draw(NUMBERS),
        device_id=draw(NUMBERS),
        size=draw(NUMBERS),
        links=draw(NUMBERS) if linked else 0,
        linktarget=draw(st.binary(max_size=50)) if kind is tree.NodeType.SYMLINK else b"",
        xattrs=tuple(draw(st.lists(st.tuples(TEXTS.map(str.encode), st.binary(max_size=20)), max_size=3))),
        device=draw(NUMBERS),
        content=tuple(draw(st.lists(IDS, max_size=4))) if kind is tree.NodeType.FILE else None,
        subtree=draw(IDS) if kind is tree.NodeType.DIR else None,
        error=draw(TEXTS),
    )


@given(st.lists(nodes(), max_size=5, unique_by=lambda node: node.name))
def test_a_tree_comes_back_as_it_was_written(listing: list[tree.Node]) -> None:
    text = tree.encode_tree(listing)
    back = tree.parse_tree(text)
    assert list(back) == sorted(listing, key=lambda node: node.name)
    assert tree.encode_tree(back) == text


@given(NAMES)
def test_every_name_survives_quoting(name: bytes) -> None:
    assert quoting.unquote_name(json.loads(quoting.quote_name(name))) == name


@given(st.text(max_size=60) | st.text('\\"abfnrtvxuU0123457', max_size=20))
def test_unquoting_anything_gives_bytes_or_a_value_error(text: str) -> None:
    try:
        quoting.unquote_name(text)
    except ValueError:
        return


@pytest.mark.parametrize("name", [r"", r".", r"..", r"a/b", r"a\\x00b", r"\\x2e\\x2e", r"\\q", r"\\xg0"])
def test_a_name_that_leads_out_of_its_directory_is_refused(name: str) -> None:
    text = tree.encode_tree([_plain_node()]).replace(b'"name":"x"', f'"name":"{name}"'.encode())
    with pytest.raises(DataDamaged):
        tree.parse_tree(text)


@given(st.binary(max_size=60))
def test_parsing_any_bytes_as_a_tree_gives_a_tree_or_our_error(text: bytes) -> None:
    with pytest.raises(DataDamaged):
        tree.parse_tree(text)


@pytest.mark.parametrize("field", ["mode", "mtime", "ctime", "uid", "size", "content", "subtree", "type"])
@pytest.mark.parametrize("value", ['"x"', "-1", "[7]", "{}", "1e400", '"00"'])
def test_a_field_of_the_wrong_kind_is_damage(field: str, value: str) -> None:
    text = tree.encode_tree([_plain_node()]).decode()
    damaged = text.replace('{"name"', f'{{"{field}":{value},"name"', 1)
    damaged = damaged if damaged.count(f'"{field}":') == 1 else _last_wins(text, field, value)
    with pytest.raises(DataDamaged):
        tree.parse_tree(damaged.encode())


def test_a_name_twice_in_one_directory_is_damage() -> None:
    one = tree.encode_node(_plain_node())
    with pytest.raises(DataDamaged):
        tree.parse_tree(tree.join_nodes([one, one]))


@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=12, unique=True), st.sampled_from(BlobKind))
def test_a_pack_comes_back_as_it_was_written(blobs: list[bytes], kind: BlobKind) -> None:
    finished, data = _pack(blobs, kind)
    entry = pack.verify_pack(finished.entry.pack, data, KEY, finished.entry)
    assert entry == finished.entry
    assert entry.size_bytes == len(data)
    assert pack.read_entry(entry.pack, data, KEY) == entry
    for blob, plaintext in zip(entry.blobs, blobs, strict=True):
        assert pack.open_blob(data[blob.offset : blob.offset + blob.length], blob, KEY) == plaintext
        assert blob.plaintext_bytes == len(plaintext)
    assert parse_index(json.loads(encode_index([entry]))) == [entry]


def test_every_damaged_byte_of_a_pack_is_noticed_even_under_a_matching_name() -> None:
    finished, data = _pack([b"some text " * 30, random.Random(1).randbytes(200), b"more"])
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(DataDamaged, match=finished.entry.pack):
            pack.verify_pack(finished.entry.pack, bytes(damaged), KEY, None)
        forged = hashlib.sha256(damaged).hexdigest()
        with pytest.raises(DataDamaged, match=forged):
            pack.verify_pack(forged, bytes(damaged), KEY, None)


def test_a_pack_that_differs_from_its_index_entry_in_any_field_is_refused() -> None:
    finished, data = _pack([b"some text " * 30, b"more text " * 30])
    first, *rest = finished.entry.blobs
    for changes in (
        {"id": bytes(32)},
        {"offset": 1},
        {"length": first.length + 1},
        {"uncompressed_length": None},
        {"kind": BlobKind.TREE},
    ):
        blobs = (first._replace(**changes), *rest)
        wrong = dataclasses.replace(finished.entry, blobs=blobs)
        with pytest.raises(DataDamaged, match="index"):
            pack.verify_pack(finished.entry.pack, data, KEY, wrong)


def test_blobs_sealed_under_a_wrong_id_or_length_are_refused() -> None:
    plaintext = b"some text " * 30
    finished, data = _pack([plaintext])
    (blob,) = finished.entry.blobs
    for changes in (
        {"id": bytes(32)},
        {"uncompressed_length": 299},
        {"uncompressed_length": 301},
        {"uncompressed_length": 1 << 31},
    ):
        with pytest.raises(DataDamaged, match="blob"):
            pack.open_blob(data[: blob.length], blob._replace(**changes), KEY)


def test_a_short_frame_cannot_claim_gigabytes() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(DataDamaged, match="longer"):
        codec.decompress(bomb, 1000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(DataDamaged):
        codec.decompress(unsized, 1000)
    with pytest.raises(DataDamaged):
        codec.decompress(codec.compress(b"one") + codec.compress(b"two"), 3)


@given(st.binary(max_size=100))
def test_no_bytes_break_the_header_parser(header: bytes) -> None:
    try:
        entry = pack.parse_header("0" * 64, header, 100)
    except DataDamaged:
        return
    assert sum(blob.length for blob in entry.blobs) == 100


def test_two_index_files_that_contradict_each_other_are_damage() -> None:
    finished, _ = _pack([b"one", b"two"])
    other = dataclasses.replace(finished.entry, blobs=finished.entry.blobs[:1])
    index = Index([finished.entry, finished.entry])
    assert len(index) == 2
    with pytest.raises(DataDamaged, match=finished.entry.pack):
        index.add(other)


def test_chunks_keep_their_limits_and_zeros_cut_at_the_smallest() -> None:
    cutter = chunker.Chunker(POLYNOMIAL)
    assert cutter.split(b"") == []
    assert cutter.split(bytes(chunker.MIN_BYTES)) == [chunker.MIN_BYTES]
    assert cutter.split(bytes(4 * chunker.MIN_BYTES)) == [chunker.MIN_BYTES * n for n in (1, 2, 3, 4)]
    ones = b"\xff" * (20 << 20)
    ends = cutter.split(ones)
    assert all(end - start <= chunker.MAX_BYTES for start, end in zip([0, *ends], ends, strict=False))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5 << 20), st.integers(1, 70000))
def test_cuts_depend_on_the_content_only(seed: int, size: int, first: int) -> None:
    """The compiled loop, fed at any alignment, agrees with the rule taken literally."""
    cutter = chunker.Chunker(POLYNOMIAL)
    data = random.Random(seed).randbytes(size)
    ends = cutter.split(data)
    shifted = bytes(first) + data
    start, again = first, []
    while (end := cutter.cut(shifted, start, len(shifted), final=True)) is not None:
        again.append(end - first)
        start = end
    assert again == ends
    for end in ends[:-1]:
        window = int.from_bytes(data[end - 64 : end], "big")
        assert chunker._mod(window, POLYNOMIAL) & 0xFFFFF == 0


def test_the_first_place_that_fits_is_cut_not_a_later_one() -> None:
    cutter = chunker.Chunker(POLYNOMIAL)
    data = bytearray(random.Random(3).randbytes(2 << 20))
    for place in (chunker.MIN_BYTES, chunker.MIN_BYTES + 1, 600_000, 614_401, 1 << 20):
        planted = bytearray(data)
        planted[place - 64 : place] = bytes(64)  # 64 zeros have the digest zero
        assert cutter.cut(planted, 0, len(planted), final=True) <= place  # type: ignore[operator]
        if place == chunker.MIN_BYTES:
            assert cutter.cut(planted, 0, len(planted), final=True) == place


def test_more_data_is_asked_for_until_the_cut_is_certain() -> None:
    cutter = chunker.Chunker(POLYNOMIAL)
    data = random.Random(5).randbytes(3 << 20)
    end = cutter.split(data)[0]
    assert cutter.cut(data, 0, end - 1, final=False) is None
    assert cutter.cut(data, 0, end, final=False) == end
    assert cutter.cut(data, 0, 1000, final=True) == 1000


def test_random_polynomials_are_irreducible_and_reducible_ones_are_refused() -> None:
    assert chunker.is_irreducible(chunker.random_polynomial())
    assert not chunker.is_irreducible(1 << 53 | 1)
    assert not chunker.is_irreducible(POLYNOMIAL >> 1)
    with pytest.raises(DataDamaged):
        chunker.Chunker(1 << 53 | 1)


def _plain_node() -> tree.Node:
    return tree.Node(name=b"x", type=tree.NodeType.FILE, mode=0o644, mtime=1, atime=1, ctime=1, size=1, content=())


def _last_wins(text: str, field: str, value: str) -> str:
    """JSON readers take the last of two equal fields."""
    return text.replace("}]}", f',"{field}":{value}}}]}}')


def _pack(blobs: list[bytes], kind: BlobKind = BlobKind.DATA) -> tuple[FinishedPack, bytes]:
    writer = PackWriter(kind, KEY)
    for blob in blobs:
        writer.add(hashlib.sha256(blob).digest(), blob)
    finished = writer.finish()
    return finished, bytes(finished.data)
