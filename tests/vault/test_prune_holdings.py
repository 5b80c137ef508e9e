"""What is needed is found, whatever the ids look like."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.errors import DataDamaged
from diskprep.repository.pack import BlobKind, BlobLocation, pack_entry
from diskprep.vault.holdings import Holdings, needs, take

_IDS = st.lists(  # few bytes that differ: many ids begin with the same eight
    st.tuples(st.sampled_from([0, 1, 255]), st.sampled_from([0, 1, 128]), st.integers(0, 3)), max_size=40
).map(lambda rows: [bytes([a]) + bytes(6) + bytes([b]) + bytes(23) + bytes([c]) for a, b, c in rows])


def holdings(*packs: list[bytes]) -> Holdings:
    found = Holdings()
    for number, ids in enumerate(packs):
        take(found, pack_entry(f"{number:064x}", BlobKind.DATA, [(i, 40 + number, None) for i in ids]), there=True)
    for places in found.places.values():
        places.sort()
    return found


@given(_IDS, _IDS, _IDS)
def test_ids_are_compared_in_full(one: list[bytes], other: list[bytes], asked: list[bytes]) -> None:
    places = holdings(one, other).places[BlobKind.DATA]
    known = set(one) | set(other)
    found, missing = places.find(asked)
    assert missing == sum(blob not in known for blob in asked)
    packs = [f"{number:064x}" for number in range(2)]
    assert [places.location(int(n), packs).id for n in found] == [blob for blob in asked if blob in known]
    new = places.need(found)
    assert {places.location(int(n), packs).id for n in new} == known & set(asked)
    assert len(places.need(found)) == 0
    needed = places.needed_blobs()
    assert sorted(needed.tolist()) == sorted(new.tolist())
    for blob in needed.tolist():
        wanted = places.location(blob, packs).id
        copies = [places.location(place, packs) for place in places.copies(blob)]
        assert [copy.id for copy in copies] == [wanted] * ((one + other).count(wanted))
        assert (blob in places.several().tolist()) == (len(copies) > 1)


def test_places_come_back_as_they_were_added() -> None:
    rng = random.Random(1)
    blobs = [(rng.randbytes(32), rng.randrange(33, 1 << 31), rng.choice((None, 5, 1 << 30))) for _ in range(500)]
    entry = pack_entry("ab" * 32, BlobKind.TREE, [(i, n % (1 << 22) + 33, plain) for i, n, plain in blobs])
    found = Holdings()
    take(found, entry, there=True)
    found.places[BlobKind.TREE].sort()
    numbers, missing = found.places[BlobKind.TREE].find([blob.id for blob in entry.blobs])
    assert missing == 0
    assert tuple(found.location(BlobKind.TREE, int(number)) for number in numbers) == entry.blobs
    assert isinstance(entry.blobs[0], BlobLocation)
    assert found.places[BlobKind.TREE].lengths(numbers).tolist() == [blob.length for blob in entry.blobs]
    assert np.unique(found.places[BlobKind.TREE].pack_of(numbers)).tolist() == [0]


def _directory(*nodes: dict[str, object]) -> bytes:
    return json.dumps({"nodes": list(nodes)}).encode()


def test_whatever_an_entry_is_what_it_names_is_needed() -> None:
    one, other, tree = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2", b"3"))
    subtrees, blobs = needs(
        _directory(
            {"name": "a", "type": "file", "content": [one, other]},
            {"name": "b", "type": "dir", "subtree": tree, "content": None},
            {"name": "c", "type": "irregular", "content": [one]},
            {"name": "d", "type": "symlink", "content": None},
        )
    )
    assert subtrees == [bytes.fromhex(tree)]
    assert blobs == [bytes.fromhex(text) for text in (one, other, one)]
    assert needs(b'{"nodes":null}') == ([], [])


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"[]",
        b"{}",
        b'{"nodes":{}}',
        b'{"nodes":0}',
        _directory({"name": "a", "type": "file", "content": {}}),
        _directory({"name": "a", "type": "file", "subtree": ""}),
        _directory({"name": "a", "type": "dir", "content": None}),
        _directory({"name": "a", "type": "file", "content": ["ab"]}),
        _directory({"name": "a", "type": "file", "content": 7}),
        _directory({"name": "a"}),
        b"[" * 100_000,
    ],
)
def test_a_directory_that_is_not_understood_is_an_error_and_not_empty(plaintext: bytes) -> None:
    with pytest.raises(DataDamaged):
        needs(plaintext)
