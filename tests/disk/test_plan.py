"""The plan: every pack on one disk, with its index files; no disk too full; few disks; the same every time."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskprep.disk import plan as plans
from diskprep.errors import DataDamaged, DisksInsufficient, UsageError
from diskprep.seal import FileKind, Seal, SealedFile

MIB = 1 << 20
TERA = 10**12


def file_of(kind: FileKind, number: int, size_bytes: int) -> SealedFile:
    digest = hashlib.sha256(f"{kind} {number}".encode()).hexdigest()
    name = f"index/{digest}" if kind is FileKind.INDEX else f"data/{digest[:2]}/{digest}"
    return SealedFile(name=name, kind=kind, size_bytes=size_bytes, sha256=digest)


def seal_of(sizes: Sequence[int], *, named: Sequence[Sequence[int]] = (), index_bytes: int = MIB) -> Seal:
    """A seal of packs of these sizes. `named`: for each index file, which packs it names."""
    packs = [file_of(FileKind.DATA, number, size) for number, size in enumerate(sizes)]
    indexes = [file_of(FileKind.INDEX, number, index_bytes) for number in range(len(named))]
    return Seal(
        job_name="job",
        repository_id="0" * 64,
        snapshot="1" * 64,
        created="now",
        files=(*packs, *indexes),
        indexes={index.name: tuple(sorted(names)) for index, names in zip(indexes, named, strict=True) if names},
    )


def offers(*sizes: int) -> list[plans.Offer]:
    return [plans.Offer(serial=f"S{n:02}", size_bytes=size) for n, size in enumerate(sizes)]


def need_bytes(disk: plans.DiskPlan) -> int:
    return sum(map(plans.footprint_bytes, disk.files))


def names(packs: Sequence[SealedFile]) -> list[str]:
    return [pack.name for pack in packs]


@st.composite
def seals(draw: st.DrawFn, *, packs: int = 80, pack_bytes: int = 32 * MIB) -> Seal:
    """Most packs are named by one index file, some by two, and some index files name none."""
    sizes = draw(st.lists(st.integers(1, pack_bytes), max_size=packs))
    named: list[list[int]] = [[] for _ in range(draw(st.integers(0, 6)))]
    for number in range(len(sizes) if named else 0):
        for slot in draw(st.sets(st.integers(0, len(named) - 1), min_size=1, max_size=2)):
            named[slot].append(number)
    return seal_of(sizes, named=named, index_bytes=draw(st.integers(1, 4 * MIB)))


disks_of = st.lists(st.integers(96, 2048), max_size=10).map(lambda sizes: offers(*(size * MIB for size in sizes)))


@settings(deadline=None, max_examples=80)
@given(seals(), disks_of, st.booleans())
def test_every_pack_is_on_one_disk_or_left_and_no_disk_is_too_full(
    seal: Seal, disks: list[plans.Offer], spread: bool
) -> None:
    plan = plans.make_plan(seal, disks, spread=spread)
    placed = [name for disk in plan.disks for name in names(disk.packs)]
    assert sorted(placed + names(plan.left)) == sorted(names(seal.data_packs))
    assert plan.is_complete is not bool(plan.left)
    sizes = {offer.serial: offer.size_bytes for offer in disks}
    for disk in plan.disks:
        assert disk.packs
        assert disk.size_bytes == sizes[disk.serial]
        assert need_bytes(disk) <= plans.usable_bytes(disk.size_bytes)
        assert all(plans.takes(disk.size_bytes, plans.footprint_bytes(file)) for file in disk.files)
    assert plan == plans.make_plan(seal, disks[::-1], spread=spread)


@settings(deadline=None, max_examples=80)
@given(seals(), disks_of, st.booleans())
def test_a_disk_has_the_index_files_of_its_own_packs_and_no_others(
    seal: Seal, disks: list[plans.Offer], spread: bool
) -> None:
    for disk in plans.make_plan(seal, disks, spread=spread).disks:
        assert set(disk.indexes) == set(seal.indexes_of(disk.packs))
        assert len(disk.indexes) == len(set(disk.indexes))
        assert [file.kind for file in disk.files] == sorted(file.kind for file in disk.files)  # packs come first
        assert disk.payload_bytes == sum(file.size_bytes for file in disk.files)


@settings(deadline=None, max_examples=60)
@given(seals(), disks_of, disks_of, st.data())
def test_what_is_kept_stays_as_it_is_and_the_rest_goes_elsewhere(
    seal: Seal, first: list[plans.Offer], second: list[plans.Offer], data: st.DataObject
) -> None:
    before = plans.make_plan(seal, first)
    kept = tuple(disk for disk in before.disks if data.draw(st.booleans()))
    later = [replace(offer, serial=f"LATER-{offer.serial}") for offer in second]
    plan = plans.make_plan(seal, [*first, *later], kept=kept)
    assert plan.disks[: len(kept)] == kept
    placed = [name for disk in plan.disks for name in names(disk.packs)]
    assert sorted(placed + names(plan.left)) == sorted(names(seal.data_packs))
    assert len({disk.serial for disk in plan.disks}) == len(plan.disks)


@settings(deadline=None, max_examples=60)
@given(seals(), disks_of)
def test_a_further_disk_of_the_size_that_is_missing_completes_the_plan_and_a_smaller_one_does_not(
    seal: Seal, disks: list[plans.Offer]
) -> None:
    plan = plans.make_plan(seal, disks)
    if plan.is_complete:
        assert plan.missing_bytes == 0
        return
    further = plans.Offer(serial="FURTHER", size_bytes=plan.missing_bytes)
    assert plans.make_plan(seal, [further], kept=plan.disks).is_complete
    if plan.missing_bytes > plans.MIN_DISK_BYTES:
        smaller = replace(further, size_bytes=plan.missing_bytes - MIB)
        assert not plans.make_plan(seal, [smaller], kept=plan.disks).is_complete


def holds(seal: Seal, sizes: Sequence[int]) -> bool:
    """Whether any way at all puts the seal's packs on disks of these sizes."""
    packs = seal.data_packs
    for ways in itertools.product(range(len(sizes)), repeat=len(packs)):
        shares = [[pack for pack, way in zip(packs, ways, strict=True) if way == slot] for slot in range(len(sizes))]
        files = [(*share, *seal.indexes_of(share)) for share in shares]
        if all(
            sum(map(plans.footprint_bytes, share)) <= plans.usable_bytes(size)
            and all(plans.takes(size, plans.footprint_bytes(file)) for file in share)
            for share, size in zip(files, sizes, strict=True)
        ):
            return True
    return False


@settings(deadline=None, max_examples=150)
@given(
    seals(packs=5, pack_bytes=45 * MIB),
    st.lists(st.integers(96, 260), max_size=4),
)
def test_no_set_of_fewer_disks_would_do_and_none_with_a_smaller_last_disk(seal: Seal, disks: list[int]) -> None:
    sizes = sorted((size * MIB for size in disks), reverse=True)
    plan = plans.make_plan(seal, offers(*sizes))
    fits = [chosen for count in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, count)]
    best = next((chosen for chosen in fits if holds(seal, chosen)), None)
    assert plan.is_complete is (best is not None)
    if best:
        last = min(size for size in sizes[len(best) - 1 :] if holds(seal, [*sizes[: len(best) - 1], size]))
        assert [disk.size_bytes for disk in plan.disks] == [*sizes[: len(best) - 1], last]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(1, 8))
def test_an_index_file_lies_on_as_few_disks_as_possible(groups: list[int], chance: int, count: int) -> None:
    """The packs of a repository are much smaller than disks: then only the one at a disk's end is there twice."""
    numbers = list(range(sum(groups)))
    random.Random(chance).shuffle(numbers)
    ends = [0, *itertools.accumulate(groups)]
    seal = seal_of([4 * MIB] * len(numbers), named=[numbers[a:b] for a, b in itertools.pairwise(ends)])
    size = plans.size_for(seal.data_packs, count, indexes=seal.of_kind(FileKind.INDEX))
    plan = plans.make_plan(seal, offers(*[size] * count))
    assert plan.is_complete
    assert sum(len(disk.indexes) for disk in plan.disks) <= len(groups) + len(plan.disks) - 1


def test_a_small_disk_is_taken_where_it_does() -> None:
    seal = seal_of([16 * MIB] * 60)
    assert [disk.serial for disk in plans.make_plan(seal, offers(20 * TERA, TERA, 2 * TERA)).disks] == ["S01"]


def test_as_few_disks_as_possible_travel_unless_all_are_asked_for() -> None:
    seal = seal_of([8 * MIB] * 10)
    assert len(plans.make_plan(seal, offers(512 * MIB, 512 * MIB)).disks) == 1
    assert len(plans.make_plan(seal, offers(512 * MIB, 512 * MIB), spread=True).disks) == 2


def test_a_seal_without_packs_needs_no_disk() -> None:
    plan = plans.make_plan(seal_of([]), offers(512 * MIB))
    assert plan.disks == ()
    plans.require_complete(plan)


def test_a_plan_is_required_to_be_complete_with_what_is_missing() -> None:
    seal = seal_of([16 * MIB] * 20)
    plan = plans.make_plan(seal, offers(128 * MIB))
    with pytest.raises(
        DisksInsufficient, match=r"the disk holds all but 0\.\d+ GB of the seed; a further disk of 0\."
    ) as caught:
        plans.require_complete(plan)
    assert f"{plan.left.size_bytes / 1e9:.3f} GB" in caught.value.message
    assert f"{plan.missing_bytes / 1e9:.3f} GB" in caught.value.message
    with pytest.raises(DisksInsufficient, match=r"no disk holds 0\.336 GB of the seed"):
        plans.require_complete(plans.make_plan(seal, []))
    plans.require_complete(plans.make_plan(seal, offers(128 * MIB, plan.missing_bytes)))


def test_one_import_job_takes_ten_disks() -> None:
    seal = seal_of([30 * MIB] * 21)
    ten = plans.make_plan(seal, offers(*[96 * MIB] * 10))
    plans.require_one_job(ten)
    eleven = plans.make_plan(seal, [plans.Offer(serial="LAST", size_bytes=ten.missing_bytes)], kept=ten.disks)
    assert eleven.is_complete
    with pytest.raises(DisksInsufficient, match="needs 11 of these disks"):
        plans.require_one_job(eleven)
    assert [plans.jobs_needed(count) for count in (0, 1, 10, 11, 40)] == [0, 1, 1, 2, 4]


def test_two_disks_with_one_serial_are_refused() -> None:
    twins = [plans.Offer(serial="S", size_bytes=512 * MIB)] * 2
    with pytest.raises(UsageError, match="same serial"):
        plans.make_plan(seal_of([1]), twins)
    kept = plans.make_plan(seal_of([1]), twins[:1]).disks
    with pytest.raises(UsageError, match="same serial"):
        plans.make_plan(seal_of([1]), [plans.Offer(serial="S", size_bytes=256 * MIB)], kept=kept)


def test_a_share_of_another_seal_is_not_kept() -> None:
    share = plans.make_plan(seal_of([MIB] * 3), offers(512 * MIB)).disks
    for other in (seal_of([MIB] * 2), seal_of([])):
        with pytest.raises(DataDamaged, match="that the seal does not have"):
            plans.make_plan(other, [], kept=share)
    with pytest.raises(DataDamaged, match="planned for two disks"):
        plans.make_plan(seal_of([MIB] * 3), [], kept=[*share, replace(share[0], serial="OTHER")])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 32 * MIB), min_size=2, max_size=120), st.integers(1, 10), st.integers(0, 3))
def test_the_size_found_for_a_number_of_disks_is_enough(sizes: list[int], count: int, indexes: int) -> None:
    seal = seal_of(sizes, named=[range(number, len(sizes), indexes) for number in range(indexes)])
    size = plans.size_for(seal.data_packs, count, indexes=seal.of_kind(FileKind.INDEX))
    plan = plans.make_plan(seal, offers(*[size] * count), spread=True)
    assert plan.is_complete
    assert len(plan.disks) == min(count, len(sizes))


def test_a_hundred_thousand_packs_and_forty_disks_are_planned() -> None:
    seal = seal_of([16 * MIB] * 100_000, named=[range(first, 100_000, 200) for first in range(200)])
    plan = plans.make_plan(seal, offers(*[40 << 30] * 40))
    assert plan.is_complete
    assert len(plan.disks) == 40
    assert sum(len(disk.packs) for disk in plan.disks) == 100_000
    assert sum(len(disk.indexes) for disk in plan.disks) <= 200 + 39


def test_a_plan_takes_little_memory() -> None:
    number = 20_000
    seal = seal_of([16 * MIB] * number, named=[range(first, number, 40) for first in range(40)])
    tracemalloc.start()
    try:
        plan = plans.make_plan(seal, offers(*[40 << 30] * 8))
        kept_bytes, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.is_complete
    assert kept_bytes < 60 * number
    assert most_bytes < 1000 * number


def test_a_saved_plan_comes_back_and_only_for_its_own_seal(tmp_path: Path) -> None:
    seal = seal_of([5 * MIB] * 40, named=[range(20), range(20, 40)])
    for disks in (offers(128 * MIB), offers(512 * MIB)):
        plan = plans.make_plan(seal, disks)
        plans.save_plan(tmp_path / "plan.json", plan)
        assert plans.load_plan(tmp_path / "plan.json", seal) == plan
    with pytest.raises(DataDamaged, match="for another seal"):
        plans.load_plan(tmp_path / "plan.json", replace(seal, created="later"))
    with pytest.raises(DataDamaged, match="does not fit the seal"):
        plans.load_plan(tmp_path / "plan.json", seal_of([5 * MIB] * 3))


def test_a_plan_without_index_files_is_read_as_it_was_written(tmp_path: Path) -> None:
    seal = seal_of([5 * MIB] * 4, named=[range(4)])
    plan = plans.make_plan(seal, offers(128 * MIB))
    path = tmp_path / "plan.json"
    plans.save_plan(path, plan)
    document = json.loads(path.read_text())
    for disk in document["disks"]:
        del disk["indexes"]
    path.write_text(json.dumps(document))
    (disk,) = plans.load_plan(path, seal).disks
    assert disk == replace(plan.disks[0], indexes=())


def test_a_plan_that_names_a_pack_twice_is_damaged(tmp_path: Path) -> None:
    seal = seal_of([5 * MIB] * 4)
    path = tmp_path / "plan.json"
    plans.save_plan(path, plans.make_plan(seal, offers(128 * MIB)))
    document = json.loads(path.read_text())
    document["disks"].append({**document["disks"][0], "serial": "OTHER"})
    path.write_text(json.dumps(document))
    with pytest.raises(DataDamaged, match="planned for two disks"):
        plans.load_plan(path, seal)
