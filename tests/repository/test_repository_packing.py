"""Compressing, sealing and packing many blobs fast gives what doing it one by one gives."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import threading
from collections.abc import Callable

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from diskprep.durable import Buffer
from diskprep.repository import codec, pack, packwriter
from diskprep.repository.crypto import IV_BYTES, OVERHEAD_BYTES, DataKey
from diskprep.repository.manyseals import seal_many
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import PackWriter

KEY = DataKey(encrypt=b"e" * 32, mac_k=b"k" * 16, mac_r=b"r" * 16)


def parted(sealed: bytes, lengths: list[int]) -> list[bytes]:
    """The seals that `seal_many` has put one after the other."""
    found, start = [], 0
    for length in lengths:
        found.append(sealed[start : start + length + OVERHEAD_BYTES])
        start += length + OVERHEAD_BYTES
    assert start == len(sealed)
    return found


# -- many seals


@given(st.lists(st.binary(max_size=70) | st.binary(min_size=4080, max_size=4112), max_size=12))
def test_each_of_many_seals_opens_by_itself(texts: list[bytes]) -> None:
    seals = parted(seal_many(KEY, texts), list(map(len, texts)))
    assert [KEY.open(seal) for seal in seals] == texts


def test_buffers_of_every_kind_are_sealed() -> None:
    texts: list[Buffer] = [b"one", bytearray(b"two two two two two two"), memoryview(b"--three--")[2:7]]
    assert [KEY.open(seal) for seal in parted(seal_many(KEY, texts), [3, 23, 5])] == [bytes(text) for text in texts]


@pytest.mark.parametrize("back", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("bits", [32, 64, 96, 128])
def test_a_counter_carries_as_the_ciphers_own_does(monkeypatch: pytest.MonkeyPatch, bits: int, back: int) -> None:
    high = int.from_bytes(hashlib.sha256(b"high").digest()[:16], "big")
    low = (1 << bits) - back
    iv = ((high >> bits << bits if bits < 128 else 0) + low) % (1 << 128) or 1
    ivs = iv.to_bytes(16, "big") + b"other iv --------"[:16] + iv.to_bytes(16, "big")
    monkeypatch.setattr(DataKey, "fresh_ivs", lambda key, count: (ivs, key._context().ecb.update(ivs)))
    texts = [random.Random(1).randbytes(100), b"between", random.Random(2).randbytes(64)]
    seals = parted(seal_many(KEY, texts), [100, 7, 64])
    for seal, text in zip(seals, texts, strict=True):
        cipher = Cipher(algorithms.AES(KEY.encrypt), modes.CTR(seal[:IV_BYTES])).encryptor()
        assert seal[IV_BYTES:-16] == cipher.update(text)
        assert KEY.open(seal) == text
    assert seals[0][:IV_BYTES] == seals[2][:IV_BYTES] == iv.to_bytes(16, "big")


def test_no_iv_comes_twice_in_whatever_way_and_process_it_is_drawn() -> None:
    def draw() -> list[bytes]:
        ivs = [seal[:IV_BYTES] for seal in parted(seal_many(KEY, [b"x"] * 500), [1] * 500)]
        room = memoryview(bytearray(100))
        for _ in range(500):
            ivs.append(KEY.seal(b"x")[:IV_BYTES])
            KEY.seal_into(room, b"x")
            ivs.append(bytes(room[:IV_BYTES]))
        return ivs

    context = multiprocessing.get_context("fork")
    drawn, threads_drew = context.Queue(), list[bytes]()
    KEY.seal(b"")  # so that the pool that children inherit is begun
    children = [context.Process(target=lambda: drawn.put(draw())) for _ in range(2)]
    for child in children:
        child.start()
    thread = threading.Thread(target=lambda: threads_drew.extend(draw()))
    thread.start()
    found = draw()
    for child in children:
        found += drawn.get(timeout=20)
        child.join(20)
    thread.join(20)
    found += threads_drew
    assert len(found) == 4 * 1500
    assert len(set(found)) == len(found)
    assert bytes(IV_BYTES) not in found


# -- compression


@pytest.mark.parametrize("length", [0, 1, 2047, 2048, (16 << 10) - 1, 16 << 10, (512 << 10) - 1, 512 << 10, 3 << 20])
def test_every_length_comes_back_and_its_frame_says_how_long_it_is(length: int) -> None:
    text = (b"some text, and number %d; " * 5 % (1, 22, 333, 4444, 55555) * (length // 100 + 1))[:length]
    compressors = codec.Compressors()
    frames = [codec.compress(text), compressors.compress(text)]
    if length < codec.TINY_BYTES:
        frames.append(compressors.compress_tiny(text))
    for frame in frames:
        assert zstandard.frame_content_size(frame) == length
        assert codec.decompress(frame, length) == text
        assert length < 2000 or len(frame) < length // 10


def test_blobs_that_gain_nothing_are_recognised_when_they_are_long() -> None:
    noise = random.Random(3).randbytes(1 << 20)
    assert not codec.is_compressible(noise)
    assert not codec.is_compressible(memoryview(noise)[: 256 << 10])
    assert codec.is_compressible(noise[: (256 << 10) - 1])  # too short to be sampled
    assert codec.is_compressible(bytes(1 << 20))
    assert codec.is_compressible(noise[: 600 << 10] + bytes(424 << 10))
    assert codec.is_compressible(noise[: 1 << 19] + b"text " * 100_000)
    assert not codec.is_compressible(zstandard.ZstdCompressor().compress(noise))


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_a_frame_of_parts_holds_them_joined(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    frame = codec.compress_parts(iter(parts), len(whole))
    assert zstandard.frame_content_size(frame) == len(whole)
    assert codec.decompress(frame, len(whole)) == whole


# -- packs


def noise(length: int) -> Callable[[int], bytes]:
    return lambda number: random.Random(number).randbytes(length)


def text(length: int) -> Callable[[int], bytes]:
    return lambda number: (b"%d bottles hang on the wall, " % number * (length // 20))[:length]


MIXED = [make(length) for make in (noise, text) for length in (1, 40, 2047, 2048, 4095, 4096, 4097, 70_000, 300_000)]


def blobs_of(makers: list[Callable[[int], bytes]], count: int) -> list[bytes]:
    return [makers[number % len(makers)](number) for number in range(count)]


def written(writer: PackWriter, blobs: list[bytes]) -> tuple[pack.PackEntry, bytes]:
    for blob in blobs:
        writer.add(hashlib.sha256(blob).digest(), blob)
    finished = writer.finish()
    return finished.entry, bytes(finished.data)


def is_whole(entry: pack.PackEntry, data: bytes, blobs: list[bytes]) -> None:
    assert pack.verify_pack(entry.pack, data, KEY, entry) == entry
    assert entry.size_bytes == len(data)
    opened = [pack.open_blob(data[at.offset : at.offset + at.length], at, KEY) for at in entry.blobs]
    assert opened == blobs
    for at, blob in zip(entry.blobs, blobs, strict=True):  # stored as it is when compression does not shorten it
        assert at.length <= len(blob) + OVERHEAD_BYTES
        assert (at.uncompressed_length is None) == (at.length == len(blob) + OVERHEAD_BYTES)


@pytest.mark.parametrize(
    "blobs",
    [
        blobs_of([noise(20)], 1),
        blobs_of([noise(20)], 128),
        blobs_of([text(60), noise(20)], 1000),
        blobs_of([noise(3000), text(3500)], 300),
        blobs_of([text(60_000), noise(5000)], 40),
        blobs_of([noise(1 << 20), text(5 << 20)], 4),
        blobs_of(MIXED, 90),
    ],
    ids=["one", "as many as wait", "tiny", "middling", "longer", "long", "mixed"],
)
@pytest.mark.parametrize("expected_bytes", [1, 16 << 20])
def test_packs_of_blobs_of_all_lengths_are_whole(blobs: list[bytes], expected_bytes: int) -> None:
    is_whole(*written(PackWriter(BlobKind.DATA, KEY, expected_bytes), blobs), blobs)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(MIXED), st.integers(0, 99)), min_size=1, max_size=60), st.integers(1, 9))
def test_any_order_of_any_blobs_makes_a_whole_pack(
    chosen: list[tuple[Callable[[int], bytes], int]], waiting: int
) -> None:
    blobs = [make(number) for make, number in chosen]
    writer = PackWriter(BlobKind.TREE, KEY, 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packwriter, "_WAITING", waiting)
        entry, data = written(writer, blobs)
    is_whole(entry, data, blobs)
    assert entry.kind is BlobKind.TREE


def test_a_writer_makes_one_pack_after_the_other_in_the_same_memory() -> None:
    writer = PackWriter(BlobKind.DATA, KEY, 1 << 20)
    buffers = set()
    for number in range(5):
        blobs = [make(number) for make in MIXED[number:]]
        entry, data = written(writer, blobs)
        is_whole(entry, data, blobs)
        assert (len(writer), writer.size_bytes) == (0, 0)
        buffers.add(id(writer._buffer))
    assert len(buffers) == 1


def test_the_size_is_known_before_anything_waits_to_be_sealed() -> None:
    writer = PackWriter(BlobKind.DATA, KEY)
    for number, blob in enumerate(blobs_of(MIXED, 200), start=1):
        writer.add(hashlib.sha256(blob).digest(), blob)
        assert len(writer) == number
    size_bytes = writer.size_bytes
    finished = writer.finish()
    assert size_bytes == sum(at.length for at in finished.entry.blobs)


def test_a_blobs_memory_may_be_used_again_as_soon_as_it_is_added() -> None:
    """Chunks lie in buffers that the next piece of a file is read into."""
    blobs = blobs_of(MIXED, 60)
    writer = PackWriter(BlobKind.DATA, KEY)
    for blob in blobs:
        buffer = bytearray(blob)
        writer.add(hashlib.sha256(blob).digest(), memoryview(buffer))
        buffer[:] = bytes(len(buffer))
    finished = writer.finish()
    is_whole(finished.entry, bytes(finished.data), blobs)


def test_a_blob_that_is_compressed_already_goes_in_beside_the_others() -> None:
    parts = [b"part %d " % number * 500 for number in range(100)]
    whole = b"".join(parts)
    blobs = [b"before", whole, b"after"]
    writer = PackWriter(BlobKind.TREE, KEY)
    writer.add(hashlib.sha256(b"before").digest(), b"before")
    writer.add_frame(hashlib.sha256(whole).digest(), codec.compress_parts(parts, len(whole)), len(whole))
    writer.add(hashlib.sha256(b"after").digest(), b"after")
    finished = writer.finish()
    is_whole(finished.entry, bytes(finished.data), blobs)


def test_a_pack_is_full_before_its_header_is_too_long_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack.HEADER_ENTRIES * 41 < pack.HEADER_MAX_BYTES
    monkeypatch.setattr(packwriter, "HEADER_ENTRIES", 3)
    writer = PackWriter(BlobKind.DATA, KEY)
    full = []
    for number in range(3):
        writer.add(bytes([number]) * 32, b"x")
        full.append(writer.is_full_of_entries)
    assert full == [False, False, True]
