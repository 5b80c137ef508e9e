"""A check finds what is damaged wherever it reads, and reads what it was told to."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from trip import Trip, flip_middle

from diskprep.errors import UsageError
from diskprep.repository.pack import BlobKind, object_name
from diskprep.store.directory import DirectoryStore
from diskprep.vault import check as checks
from diskprep.vault import hands
from diskprep.vault.check import Amount, EveryPack, Part, Share, check, parse_subset


@pytest.fixture
def vaulted(trip: Trip) -> Trip:
    trip.publish()
    for file in trip.seal.data_packs:
        trip.vault.write(file.name, [DirectoryStore(trip.staging.repository).read(file.name)])
    return trip


def test_every_damaged_pack_is_named_and_no_other(vaulted: Trip, tmp_path: Path) -> None:
    damaged = [vaulted.seal.data_packs[0], vaulted.seal.data_packs[-1]]
    for file in damaged:
        flip_middle(tmp_path / "vault" / file.name)
    assert check(vaulted.open()).problems == ()  # sizes are right
    found = check(vaulted.open(), read_data=True)
    assert len(found.problems) == 2
    for file in damaged:
        assert any(file.name.rpartition("/")[2] in problem for problem in found.problems)
    assert found.read_packs == found.packs


@pytest.mark.parametrize("change", ["longer", "shorter", "gone", "swapped"])
def test_a_pack_that_is_not_what_it_was_is_found(vaulted: Trip, tmp_path: Path, change: str) -> None:
    one, other = (tmp_path / "vault" / file.name for file in vaulted.seal.data_packs[:2])
    content = one.read_bytes()
    one.chmod(0o600)
    if change == "gone":
        one.unlink()
    else:
        new = {"longer": content + b"\0", "shorter": content[:-1], "swapped": other.read_bytes()}[change]
        one.write_bytes(new)
    found = check(vaulted.open(), read_data=True)
    assert any(one.name in problem for problem in found.problems)
    assert all(one.name in problem for problem in found.problems)


def test_a_damaged_tree_costs_what_is_below_it_only(vaulted: Trip, tmp_path: Path) -> None:
    repository = vaulted.open()
    tree = next(entry for entry in repository.index.packs.values() if entry.kind is BlobKind.TREE)
    flip_middle(tmp_path / "vault" / object_name(tree.pack))
    found = check(vaulted.open())
    assert found.problems
    assert all("the directory" in problem for problem in found.problems)


def test_threads_find_what_processes_find(vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_middle(tmp_path / "vault" / vaulted.seal.data_packs[0].name)
    by_processes = check(vaulted.open(), read_data=True)
    monkeypatch.setattr(checks, "hands", lambda _store, make: hands._Threads(3, make))
    assert check(vaulted.open(), read_data=True) == by_processes


@pytest.mark.parametrize("of", [1, 2, 7, 256])
def test_the_parts_of_a_subset_are_together_every_pack_once(vaulted: Trip, of: int) -> None:
    packs = list(vaulted.opened.index.packs.values())
    parts = [entry.pack for number in range(1, of + 1) for entry in Part(number, of).choose(packs)]
    assert sorted(parts) == sorted(entry.pack for entry in packs)


def test_a_subset_is_read_and_no_more(vaulted: Trip) -> None:
    repository = vaulted.open()
    packs = list(repository.index.packs.values())
    part = check(repository, subset=Part(1, 2))
    assert part.read_packs == len(Part(1, 2).choose(packs))
    half = check(repository, subset=Share(Decimal("0.5")))
    assert half.read_packs == len(packs) // 2
    assert 0 < half.read_bytes < half.pack_bytes
    assert check(repository, subset=Amount(1)).read_packs == 1
    assert check(repository, subset=Amount(10**12)).read_packs == len(packs)
    assert check(repository, subset=EveryPack()).read_bytes == half.pack_bytes


def test_subsets_are_spelled_as_restic_has_them() -> None:
    assert parse_subset("3/12", None) == Part(3, 12)
    assert parse_subset("2.5%", None) == Share(Decimal("0.025"))
    assert parse_subset("100%", None) == Share(Decimal(1))
    assert parse_subset("10G", 10 << 30) == Amount(10 << 30)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1/257", "0%", "101%", "x/y", "%", "0"])
def test_a_subset_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_subset(text, 0 if text == "0" else None)
