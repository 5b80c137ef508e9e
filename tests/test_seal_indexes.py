"""The seal tells which index files name which data packs; its lists of packs are small."""

from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from diskprep.errors import DataDamaged
from diskprep.seal import FileKind, PackList, Seal, SealedFile, load_seal, save_seal

PACKS = 7


def file_of(kind: FileKind, number: int) -> SealedFile:
    digest = hashlib.sha256(f"{kind} {number}".encode()).hexdigest()
    name = f"index/{digest}" if kind is FileKind.INDEX else f"data/{digest[:2]}/{digest}"
    return SealedFile(name=name, kind=kind, size_bytes=1000 + number, sha256=digest)


DATA = tuple(file_of(FileKind.DATA, number) for number in range(PACKS))
TREE = file_of(FileKind.TREE, 0)
FIRST, SECOND, OF_TREES = INDEXES = tuple(file_of(FileKind.INDEX, number) for number in range(3))
PLAIN = Seal(
    job_name="job",
    repository_id="0" * 64,
    snapshot="1" * 64,
    created="2026-01-01T00:00:00Z",
    files=(*DATA, TREE, *INDEXES),
)
TELLING = replace(PLAIN, indexes={FIRST.name: (0, 1, 4), SECOND.name: (2, 3, 4, 5)})


def test_the_index_files_of_packs_are_those_that_name_one_of_them() -> None:
    assert TELLING.indexes_of(DATA[:2]) == (FIRST,)
    assert TELLING.indexes_of(DATA[2:4]) == (SECOND,)
    assert TELLING.indexes_of(DATA[4:5]) == (FIRST, SECOND)
    assert TELLING.indexes_of(PackList(DATA[:4])) == (FIRST, SECOND)
    assert TELLING.indexes_of(DATA[6:]) == ()
    assert TELLING.indexes_of([]) == ()


def test_an_index_file_of_trees_alone_belongs_to_no_pack() -> None:
    assert OF_TREES not in TELLING.indexes_of(DATA)


def test_a_seal_that_does_not_tell_has_no_index_files_for_a_disk(tmp_path: Path) -> None:
    assert PLAIN.indexes_of(DATA) == ()
    save_seal(tmp_path / "seal.json", PLAIN)
    assert load_seal(tmp_path / "seal.json").indexes is None


def test_a_seal_comes_back_as_it_was(tmp_path: Path) -> None:
    for seal in (PLAIN, TELLING, replace(PLAIN, indexes={})):
        save_seal(tmp_path / "seal.json", seal)
        assert load_seal(tmp_path / "seal.json") == seal


def test_a_seal_that_does_not_tell_has_the_digest_it_always_had(tmp_path: Path) -> None:
    """Plans, journals and certificates of earlier versions name it."""
    small = replace(PLAIN, files=(DATA[0], FIRST))
    assert small.digest == "516428aeab2553f792b97ccafa81f2c45159e1290768ca13afe9b8242f531a2b"
    save_seal(tmp_path / "seal.json", small)
    assert "indexes" not in json.loads((tmp_path / "seal.json").read_text())
    assert (
        len({small.digest, replace(small, indexes={}).digest, replace(small, indexes={FIRST.name: (0,)}).digest}) == 3
    )


@pytest.mark.parametrize(
    "indexes",
    [
        {FIRST.name: ""},
        {FIRST.name: "x"},
        {FIRST.name: "0 0"},
        {FIRST.name: "0 -1"},
        {FIRST.name: f"{PACKS}"},
        {FIRST.name: "1000"},
        {TREE.name: "0"},
        {"index/" + "0" * 64: "0"},
        {FIRST.name: [0]},
        [],
    ],
)
def test_a_seal_that_names_what_cannot_be_is_damaged(tmp_path: Path, indexes: object) -> None:
    path = tmp_path / "seal.json"
    save_seal(path, TELLING)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "indexes": indexes}))
    with pytest.raises(DataDamaged, match="is damaged"):
        load_seal(path)


def test_a_seal_with_another_share_of_an_index_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    save_seal(path, TELLING)
    document = json.loads(path.read_text())
    document["indexes"][FIRST.name] = "0 1"
    path.write_text(json.dumps(document))
    with pytest.raises(DataDamaged, match="digest does not match"):
        load_seal(path)


def test_a_pack_list_is_the_packs_it_was_made_of() -> None:
    packs = PackList(DATA)
    assert tuple(packs) == DATA
    assert [packs[number] for number in range(-PACKS, PACKS)] == [*DATA, *DATA]
    assert tuple(packs[1:6:2]) == DATA[1:6:2]
    assert isinstance(packs[1:], PackList)
    assert (len(packs), packs.size_bytes) == (PACKS, sum(pack.size_bytes for pack in DATA))
    assert DATA[3] in packs
    with pytest.raises(IndexError):
        packs[PACKS]


def test_equal_pack_lists_have_the_same_packs_in_the_same_order() -> None:
    packs = PackList(DATA)
    assert packs == PackList(packs)
    assert hash(packs) == hash(PackList(DATA))
    assert packs != PackList(DATA[::-1])
    assert packs != PackList(DATA[1:])
    assert packs != PackList([replace(DATA[0], size_bytes=1), *DATA[1:]])
    assert not PackList()


def test_a_pack_list_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(PackList(DATA))) == PackList(DATA)


@pytest.mark.parametrize(
    "file",
    [
        TREE,
        FIRST,
        replace(DATA[0], name=DATA[1].name),
        replace(DATA[0], sha256="ab", name="data/ab/ab"),
        replace(DATA[0], sha256="x" * 64, name=f"data/xx/{'x' * 64}"),
    ],
)
def test_a_pack_list_takes_data_packs_under_the_name_of_their_hash_alone(file: SealedFile) -> None:
    with pytest.raises(DataDamaged):
        PackList([file])


def test_the_packs_of_a_large_disk_take_little_memory() -> None:
    number = 50_000
    tracemalloc.start()
    try:
        packs = PackList(file_of(FileKind.DATA, each) for each in range(number))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 50 * number
    assert packs[number - 1] == file_of(FileKind.DATA, number - 1)
