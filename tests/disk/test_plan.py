"""The plan: every pack on exactly one disk, no disk too full, the same every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskprep.disk import plan as plans
from diskprep.errors import DataDamaged, DisksInsufficient, UsageError
from diskprep.seal import FileKind, Seal, SealedFile

MIB = 1 << 20


def seal_of(sizes: list[int]) -> Seal:
    files = []
    for number, size in enumerate(sizes):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        files.append(SealedFile(name=f"data/{digest[:2]}/{digest}", kind=FileKind.DATA, size_bytes=size, sha256=digest))
    return Seal(job_name="job", repository_id="0" * 64, snapshot="1" * 64, created="now", files=tuple(files))


def offers(*sizes: int) -> list[plans.Offer]:
    return [plans.Offer(serial=f"S{n}", size_bytes=size) for n, size in enumerate(sizes)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 32 * MIB), min_size=1, max_size=80),
    st.lists(st.integers(96, 2048), min_size=1, max_size=10),
    st.booleans(),
)
def test_every_pack_is_on_one_disk_and_no_disk_is_too_full(sizes: list[int], disks: list[int], spread: bool) -> None:
    seal = seal_of(sizes)
    try:
        plan = plans.make_plan(seal, offers(*(d * MIB for d in disks)), spread=spread)
    except DisksInsufficient:
        total = sum(plans.footprint_bytes(pack) for pack in seal.data_packs)
        assert total > max(plans.usable_bytes(d * MIB) for d in disks)
        return
    placed = [pack.name for disk in plan.disks for pack in disk.packs]
    assert sorted(placed) == sorted(pack.name for pack in seal.data_packs)
    for disk in plan.disks:
        assert disk.packs
        assert sum(map(plans.footprint_bytes, disk.packs)) <= plans.usable_bytes(disk.size_bytes)
    assert plan == plans.make_plan(seal, offers(*(d * MIB for d in disks)), spread=spread)


def test_as_few_disks_as_possible_travel_unless_all_are_asked_for() -> None:
    seal = seal_of([8 * MIB] * 10)
    assert len(plans.make_plan(seal, offers(512 * MIB, 512 * MIB)).disks) == 1
    assert len(plans.make_plan(seal, offers(512 * MIB, 512 * MIB), spread=True).disks) == 2


def test_too_few_disks_are_refused_with_what_is_missing() -> None:
    with pytest.raises(DisksInsufficient, match=r"all but 0\.\d+ GB"):
        plans.make_plan(seal_of([16 * MIB] * 20), offers(128 * MIB))


def test_two_disks_with_one_serial_are_refused() -> None:
    twins = [plans.Offer(serial="S", size_bytes=512 * MIB)] * 2
    with pytest.raises(UsageError, match="same serial"):
        plans.make_plan(seal_of([1]), twins)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 32 * MIB), min_size=2, max_size=120), st.integers(1, 10))
def test_the_size_found_for_a_number_of_disks_is_enough(sizes: list[int], count: int) -> None:
    seal = seal_of(sizes)
    size = plans.size_for(seal.data_packs, count)
    assert len(plans.make_plan(seal, offers(*[size] * count), spread=True).disks) == min(count, len(sizes))


def test_a_hundred_thousand_packs_and_ten_disks_are_planned() -> None:
    plan = plans.make_plan(seal_of([16 * MIB] * 100_000), offers(*[200 << 30] * 10))
    assert sum(len(disk.packs) for disk in plan.disks) == 100_000


def test_a_saved_plan_comes_back_and_only_for_its_own_seal(tmp_path: Path) -> None:
    seal = seal_of([5 * MIB] * 4)
    plan = plans.make_plan(seal, offers(128 * MIB))
    plans.save_plan(tmp_path / "plan.json", plan)
    assert plans.load_plan(tmp_path / "plan.json", seal) == plan
    with pytest.raises(DataDamaged):
        plans.load_plan(tmp_path / "plan.json", seal_of([5 * MIB] * 3))
