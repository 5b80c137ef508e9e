"""The format's fixed points: values that other implementations compute too."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator

import pytest

from diskprep.errors import DataDamaged
from diskprep.repository import chunker, keys, quoting, tree
from diskprep.repository.crypto import DataKey
from diskprep.secrets import Secret

KEY = DataKey(encrypt=bytes(range(32)), mac_k=bytes(range(32, 48)), mac_r=bytes(range(48, 64)))
SEALED = bytes.fromhex("404142434445464748494a4b4c4d4e4fcb1bb353f87acc8ee61716ff0300caec5880c0c702142a1ebf3f45")
POLYNOMIAL = 0x3DA3358B4DC173
CUTS = [
    *(1015968, 2103100, 2796539, 5140597, 6043877, 7752968, 9544245, 11346698, 12537050, 13065341, 13934020),
    *(15039146, 16886549, 17955664, 18745199, 19436437, 21099347, 21669076, 25176214, 27243041, 27842786),
    *(28459884, 30499518, 31158516, 32487316, 33554432),
]


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from _zone(monkeypatch, "UTC")


def _zone(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    monkeypatch.setenv("TZ", name)
    time.tzset()
    quoting._zone_offset_s.cache_clear()
    quoting._format_second.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    quoting._zone_offset_s.cache_clear()
    quoting._format_second.cache_clear()


def test_the_sealing_vector_opens() -> None:
    assert KEY.open(SEALED) == b"hello vault"


def test_sealing_with_the_vectors_iv_gives_the_vector() -> None:
    context = KEY._context()
    context.ivs, context.used = bytes(range(0x40, 0x50)) + bytes(16 * 1023), 0
    context.addends = context.ecb.update(context.ivs)
    assert KEY.seal(b"hello", b" vault") == SEALED
    context.used = 1024  # never again with these


def test_every_changed_bit_of_sealed_data_is_noticed() -> None:
    for position in range(len(SEALED)):
        damaged = bytearray(SEALED)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DataDamaged):
            KEY.open(damaged)
    for length in range(len(SEALED)):
        with pytest.raises(DataDamaged):
            KEY.open(SEALED[:length])


def test_no_iv_comes_twice_also_over_the_pools_end() -> None:
    ivs = {KEY.seal(b"")[:16] for _ in range(3000)}
    assert len(ivs) == 3000


def test_a_data_key_shows_nothing_of_itself() -> None:
    assert repr(KEY) == "DataKey()"


def test_the_scrypt_vector() -> None:
    kek = keys.derive(Secret("correct horse battery staple"), bytes(range(64)), keys.ScryptCost(n=32768, r=8, p=1))
    assert (kek.encrypt + kek.mac_k + kek.mac_r).hex() == (
        "703661edfbdf27215c122179c0b47cdc771238ddb27cb81510706702ff8c9ce5"
        "211510dd2de4bb97fff68c75c093027290284e5c1a2e8b9f5170d11791bad8ea"
    )


def test_the_chunkers_cuts_are_restics() -> None:
    data = b"".join(hashlib.sha256(struct.pack("<Q", number)).digest() for number in range(1 << 20))
    assert hashlib.sha256(data).hexdigest() == "e8b10ee1485f66037afca792113ce0e75116962aeda104b71a9fdaf0a8ec896b"
    cutter = chunker.Chunker(POLYNOMIAL)
    assert cutter.split(data) == CUTS
    assert cutter._outs[1] == 0xB6A88A7D4D6B8
    assert cutter._outs[255] == 0xBEBBAD97B78BA
    assert cutter._mods[1] == POLYNOMIAL
    assert cutter._mods[255] == 0x1FF7AC8A5AF476A7


@pytest.mark.usefixtures("utc")
def test_the_tree_vector() -> None:
    node = tree.Node(
        name=bytes.fromhex("613c623e26c3a9225c0aff"),
        type=tree.NodeType.FILE,
        mode=tree.go_mode(0o100644),
        mtime=1700000000123456789,
        atime=1700000000123456789,
        ctime=1700000001500000000,
        gid=12345,
        user="root",
        inode=42,
        device_id=65024,
        size=5,
        links=1,
        content=(hashlib.sha256(b"hello").digest(),),
    )
    text = tree.encode_tree([node])
    assert rb'"name":"a\u003cb\u003e\u0026' + "é".encode() + rb'\\\"\\\\\\n\\xff","type":"file","mode":420,' in text
    assert hashlib.sha256(text).hexdigest() == "a8a812431201a01f35ab77d5defb92308cb85cb0d651b63d02f5ec90c148f00b"
    assert tree.parse_tree(text) == (node,)


@pytest.mark.parametrize(
    ("zone", "time_ns", "text"),
    [
        ("UTC", 0, "1970-01-01T00:00:00Z"),
        ("UTC", -5_000_000_001, "1969-12-31T23:59:54.999999999Z"),
        ("Europe/Berlin", 1_700_000_000_500_000_000, "2023-11-14T23:13:20.5+01:00"),
        ("Europe/Berlin", 1_690_000_000_000_000_000, "2023-07-22T06:26:40+02:00"),
        ("America/St_Johns", 1_700_000_000_000_000_010, "2023-11-14T18:43:20.00000001-03:30"),
        ("UTC", 4_102_444_800_123_456_789, "2100-01-01T00:00:00.123456789Z"),
    ],
)
def test_times_are_local_with_the_offset_of_their_instant(
    monkeypatch: pytest.MonkeyPatch, zone: str, time_ns: int, text: str
) -> None:
    for _ in _zone(monkeypatch, zone):
        assert quoting.format_time(time_ns) == text
    assert quoting.parse_time(text) == time_ns


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.txt", '"plain name.txt"'),
        (b"\x07\x08\x09\x0a\x0b\x0c\x0d", r'"\\a\\b\\t\\n\\v\\f\\r"'),
        (b"\x01\x7f\xff", r'"\\x01\\x7f\\xff"'),
        ("a\u00a0b\u200b\U000e0001".encode(), r'"a\\u00a0b\\u200b\\U000e0001"'),
        ("\u2028".encode(), r'"\\u2028"'),
        (b"'<>&\"\\", r'''"'\u003c\u003e\u0026\\\"\\\\"'''),
        (b"\xe2\x82", r'"\\xe2\\x82"'),
        (b"\xed\xa0\x80", r'"\\xed\\xa0\\x80"'),
    ],
)
def test_names_are_quoted_as_go_quotes_them(name: bytes, text: str) -> None:
    assert quoting.quote_name(name) == text


def test_strings_are_quoted_as_gos_json_does() -> None:
    assert quoting.json_string('<a>&"\\\n\x01\x7f\u2028é') == '"\\u003ca\\u003e\\u0026\\"\\\\\\n\\u0001\x7f\\u2028é"'
    assert quoting.json_string(b"\xff\xc3".decode("utf-8", "surrogateescape")) == '"\\ufffd\\ufffd"'
