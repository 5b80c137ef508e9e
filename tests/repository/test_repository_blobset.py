"""The set of blob ids that forked processes share: a set, but for ids it may forget when it is too small."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import need_root, open_descriptors

from diskprep.errors import DiskprepError, StorageFull
from diskprep.repository import blobset
from diskprep.repository.blobset import ID_BYTES, BlobSet, table_bytes

SLOTS = table_bytes(0) // ID_BYTES
#: Many of these want the same slot, or one at the table's end, from which probing goes on at its beginning.
IDS = st.builds(
    lambda place, rest: place.to_bytes(8, "little") + rest,
    st.sampled_from([0, 1, 7, SLOTS - 2, SLOTS - 1, 5 * SLOTS - 1, 2**64 - 1]),
    st.binary(min_size=24, max_size=24),
).filter(any)


def numbered(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


@given(st.lists(st.tuples(st.booleans(), IDS), max_size=80))
def test_it_answers_as_a_set_does(steps: list[tuple[bool, bytes]]) -> None:
    ours, model = BlobSet(0), set[bytes]()
    for adds, blob_id in steps:
        assert (blob_id in ours) == (blob_id in model)
        if adds:
            assert ours.add(blob_id) == (blob_id not in model)
            model.add(blob_id)
    assert all(blob_id in ours for blob_id in model)
    ours.close()


def test_as_many_ids_as_were_expected_are_all_kept() -> None:
    ours = BlobSet(40_000)
    ours.update(numbered(number) for number in range(40_000))
    assert all(numbered(number) in ours for number in range(40_000))
    assert not any(numbered(number) in ours for number in range(40_000, 80_000))
    assert not any(ours.add(numbered(number)) for number in range(0, 40_000, 7))
    assert 1.2 < table_bytes(40_000) / (40_000 * ID_BYTES) < 2
    ours.close()


def test_an_empty_slot_is_nobodys_id() -> None:
    ours = BlobSet(0)
    assert bytes(ID_BYTES) not in ours
    assert ours.add(bytes(ID_BYTES))
    assert bytes(ID_BYTES) not in ours
    ours.close()


class _Counted:
    """A table that counts how often it is looked at."""

    def __init__(self, table: object) -> None:
        self.table, self.looks = table, 0

    def __getitem__(self, place: slice) -> bytes:
        self.looks += 1
        return self.table[place]  # type: ignore[no-any-return, index]


def test_a_full_table_forgets_but_neither_searches_without_end_nor_invents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobset, "_MIN_SLOTS", 1000)
    ours = BlobSet(0)
    added = [numbered(number) for number in range(3000)]
    assert all(map(ours.add, added))  # none of them was there before
    kept = [blob_id for blob_id in added if blob_id in ours]
    assert len(kept) == 1000
    counted = _Counted(ours._table)
    ours._table = counted  # type: ignore[assignment]
    for number in range(3000, 3020):
        counted.looks = 0
        assert numbered(number) not in ours
        assert counted.looks == 256
        assert ours.add(numbered(number))
        assert counted.looks == 512
    assert not any(ours.add(blob_id) for blob_id in kept)


def test_what_a_forked_process_adds_the_others_find() -> None:
    context = multiprocessing.get_context("fork")
    ours = BlobSet(1000)
    ours.add(numbered(0))
    found = context.Queue()

    def child() -> None:
        found.put((numbered(0) in ours, ours.add(numbered(1)), ours.add(numbered(0))))

    process = context.Process(target=child)
    process.start()
    assert found.get(timeout=10) == (True, True, False)
    process.join(10)
    assert numbered(1) in ours
    assert not ours.add(numbered(1))
    ours.close()


def test_processes_that_add_at_the_same_time_lose_next_to_nothing_and_invent_nothing() -> None:
    context = multiprocessing.get_context("fork")
    ours = BlobSet(20_000)
    ids = [numbered(number) for number in range(20_000)]
    orders = (ids, ids[::-1], ids[10_000:] + ids[:10_000])
    processes = [context.Process(target=ours.update, args=(order,)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sum(blob_id not in ours for blob_id in ids) < 20
    assert not any(numbered(number) in ours for number in range(20_000, 40_000))
    ours.close()


def test_a_table_in_a_scratch_directory_is_a_file_without_a_name(tmp_path: Path) -> None:
    before = open_descriptors()
    ours = BlobSet(1000, tmp_path)
    assert ours.add(numbered(1))
    assert not ours.add(numbered(1))
    assert numbered(2) not in ours
    assert list(tmp_path.iterdir()) == []
    assert os.fsencode(tmp_path) in Path("/proc/self/maps").read_bytes()
    ours.close()
    assert os.fsencode(tmp_path) not in Path("/proc/self/maps").read_bytes()
    assert not open_descriptors() - before


def test_a_scratch_directory_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskprepError, match="scratch directory") as caught:
        BlobSet(1000, tmp_path / "nothing")
    assert str(tmp_path / "nothing") in caught.value.message


@pytest.mark.root
def test_a_scratch_directory_that_is_too_small_is_told_at_once(tmp_path: Path) -> None:
    need_root()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(StorageFull, match="scratch directory") as caught:
            BlobSet(1 << 20, tmp_path)
        assert caught.value.hint
        assert list(tmp_path.iterdir()) == []
        BlobSet(1000, tmp_path).close()  # half a megabyte
    finally:
        subprocess.run(["umount", tmp_path], check=True)
