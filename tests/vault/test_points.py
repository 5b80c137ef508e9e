"""`vault list`: what each recovery point holds and added, as restic counts it, and what keeps it from a restore."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from history import History, make_history
from support import diskprep, diskprep_json
from trip import flip_middle, restic
from vaults import load_tree

from diskprep.events import Event, Progress
from diskprep.repository.pack import BlobKind, object_name
from diskprep.repository.repository import Repository
from diskprep.vault.catalogue import is_hex, read_catalogue
from diskprep.vault.difference import Difference
from diskprep.vault.find import Query, Search
from diskprep.vault.points import Choice, Survey, schedules, survey
from diskprep.vault.restorable import restorable


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Five points of two hosts; not to be changed."""
    return make_history(tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="module")
def surveyed(history: History) -> Survey:
    return survey(history.repository)


@pytest.fixture
def damaged(history: History, tmp_path: Path) -> History:
    """A copy that a test may damage."""
    return history.copy(tmp_path)


def raw_bytes(history: History, *ids: str) -> int:
    """What restic says the blobs of some points take in packs, each once."""
    said = restic(history.vault, history.password_file, "stats", "--json", "--mode", "raw-data", *ids)
    return int(json.loads(said.splitlines()[-1])["total_size"])


def test_points_are_told_oldest_first_with_what_restic_noted(history: History, surveyed: Survey) -> None:
    assert [point.snapshot.id for point in surveyed.points] == history.ids
    assert [point.snapshot.hostname for point in surveyed.points] == ["one", "one", "one", "two", "one"]
    assert surveyed.points[1].snapshot.tags == ("daily", "kept")
    assert surveyed.problems == ()


def test_growth_is_what_restic_counts_beyond_all_earlier_points(history: History, surveyed: Survey) -> None:
    before = 0
    for number, point in enumerate(surveyed.points, start=1):
        now = raw_bytes(history, *history.ids[:number])
        assert point.growth_bytes == now - before
        before = now
    assert surveyed.points[2].growth_bytes < 20_000 < surveyed.points[1].growth_bytes


def test_the_cost_of_a_full_backup_is_what_restic_counts_for_the_point_alone(
    history: History, surveyed: Survey
) -> None:
    for point in surveyed.points:
        assert point.full_bytes == raw_bytes(history, point.snapshot.id)


def test_a_differential_holds_what_the_first_point_of_its_series_does_not(history: History, surveyed: Survey) -> None:
    first, second, third, other, last = surveyed.points
    assert first.differential_bytes == first.full_bytes
    assert other.differential_bytes == other.full_bytes  # the first of its host
    for point in (second, third, last):
        both = raw_bytes(history, first.snapshot.id, point.snapshot.id)
        assert point.differential_bytes == both - first.full_bytes
    taken = schedules(surveyed.points)
    assert taken["synthetic_full"] == raw_bytes(history, *history.ids)
    assert taken["synthetic_full"] < taken["differential"] < taken["full"]


def test_sizes_are_of_the_files_as_they_were(history: History, surveyed: Survey) -> None:
    last = surveyed.points[-1]
    files = [path for path in history.source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert last.files == len(files)
    assert last.size_bytes == sum(path.stat().st_size for path in files)
    folders = [path for path in history.source.rglob("*") if path.is_dir() and not path.is_symlink()]
    assert last.directories == len(folders) + len(history.source.parts) - 1


def test_a_folder_that_stands_in_two_places_counts_twice_in_size_and_once_in_what_is_stored(
    history: History, surveyed: Survey
) -> None:
    twins = surveyed.points[2]  # its only news: a folder linked file by file, so listed alike
    assert twins.files == surveyed.points[1].files + 3
    assert twins.size_bytes == surveyed.points[1].size_bytes + 3 * 50_000


def test_every_directory_is_read_once_whatever_the_number_of_points(history: History) -> None:
    events: list[Event] = []
    survey(history.repository, emit=events.append)
    catalogue = read_catalogue(history.repository)
    done = [event for event in events if isinstance(event, Progress)]
    assert len(done) == len(catalogue.trees)
    assert done[-1].done_bytes == done[-1].total_bytes


def test_a_point_is_restorable_when_all_packs_it_needs_are_there(damaged: History) -> None:
    repository = damaged.repository
    before = survey(repository).points
    assert all(point.lacks.is_whole for point in before)
    used = [packs_of(damaged, point.snapshot.tree) for point in before]
    lost = min(used[1] - used[0])
    size = repository.index.packs[lost].size_bytes
    repository.store.delete(object_name(lost))
    lacking = {point.snapshot.id: point.lacks for point in survey(repository).points}
    for point, packs in zip(before, used, strict=True):
        lacks = lacking[point.snapshot.id]
        assert (lacks.missing_packs, lacks.missing_bytes) == (((lost,), size) if lost in packs else ((), 0))
        assert lacks.is_whole is (lost not in packs)
    assert lacking == restorable(damaged.repository)


def packs_of(history: History, tree: bytes) -> set[str]:
    """The packs with data of a directory and all below it, found the slow way."""
    repository, packs = history.repository, set()
    for node in load_tree(repository, tree):
        if node.subtree is not None:
            packs |= packs_of(history, node.subtree)
        for blob in node.content or ():
            location = repository.index.find(BlobKind.DATA, blob)
            assert location is not None
            packs.add(location.pack)
    return packs


def test_a_pack_of_another_size_counts_as_missing(damaged: History) -> None:
    repository = damaged.repository
    entry = next(entry for entry in repository.index.packs.values() if entry.kind is BlobKind.DATA)
    path = damaged.vault / object_name(entry.pack)
    path.chmod(0o600)
    os.truncate(path, entry.size_bytes - 1)
    assert any(point.lacks.missing_packs == (entry.pack,) for point in survey(repository).points)


def test_a_blob_that_lies_in_a_second_pack_is_not_missed(damaged: History) -> None:
    repository = damaged.repository
    entry = next(entry for entry in repository.index.packs.values() if entry.kind is BlobKind.DATA)
    copy = bytearray((damaged.vault / object_name(entry.pack)).read_bytes())
    name = "ab" * 32  # no listing looks into it
    (damaged.vault / object_name(name)).write_bytes(copy)
    repository.save_index([replace(entry, pack=name, blobs=tuple(blob._replace(pack=name) for blob in entry.blobs))])
    before = [point.full_bytes for point in survey(repository).points]
    repository.store.delete(object_name(entry.pack))
    found = survey(repository).points
    assert all(point.lacks.is_whole for point in found)
    assert [point.full_bytes for point in found] == before


def test_a_directory_that_cannot_be_read_is_told_and_costs_only_its_points(damaged: History) -> None:
    repository = damaged.repository
    trees = [entry for entry in repository.index.packs.values() if entry.kind is BlobKind.TREE]
    roots = [snapshot.tree for snapshot in repository.snapshots()]
    last = next(entry for entry in trees if roots[-1] in {blob.id for blob in entry.blobs})
    flip_middle(damaged.vault / object_name(last.pack))
    found = survey(repository)
    assert found.problems
    assert found.points[0].lacks.is_whole
    assert not found.points[-1].lacks.is_whole
    out, err = diskprep("vault", "list", "--vault", damaged.vault, "--passphrase-file", damaged.password_file, code=30)
    assert "damaged" in out
    assert "could not be read" in err


def test_points_are_chosen_as_restic_chooses_them(history: History) -> None:
    snapshots = history.repository.snapshots()
    cases = [
        (Choice(), ()),
        (Choice(hosts=("two",)), ("--host", "two")),
        (Choice(hosts=("two", "one")), ("--host", "two", "--host", "one")),
        (Choice(paths=(str(history.source),)), ("--path", str(history.source))),
        (Choice(paths=("/elsewhere",)), ("--path", "/elsewhere")),
        (Choice(tags=(("daily",),)), ("--tag", "daily")),
        (Choice(tags=(("daily", "kept"), ("other",))), ("--tag", "daily,kept", "--tag", "other")),
        (Choice(tags=(("",),)), ("--tag", "")),
    ]
    for choice, options in cases:
        said = json.loads(restic(history.vault, history.password_file, "snapshots", "--json", *options))
        assert [snapshot.id for snapshot in snapshots if choice.has(snapshot)] == [
            found["id"] for found in sorted(said or [], key=lambda found: found["time"])
        ]


def test_the_command_line_shows_growth_and_a_chart(history: History, surveyed: Survey) -> None:
    options = ("--vault", history.vault, "--passphrase-file", history.password_file)
    out, _ = diskprep("vault", "list", *options)
    for point in surveyed.points:
        assert point.snapshot.id[:8] in out
    bars = {line[:14].strip(): line.count("#") for line in out.splitlines() if "#" in line}
    assert bars["full"] == 40
    assert 0 < bars["synthetic full"] < bars["differential"] < bars["full"]
    document = diskprep_json("vault", "list", *options, "--host", "one")
    assert [point["growth_bytes"] for point in document["recovery_points"]] == [
        point.growth_bytes for point in surveyed.points if point.snapshot.hostname == "one"
    ]
    assert document["schedules"] == schedules(p for p in surveyed.points if p.snapshot.hostname == "one")
    fast = diskprep_json("vault", "list", *options, "--fast")
    assert [point["id"] for point in fast["recovery_points"]] == history.ids


def test_listing_prolongs_the_hold_and_no_hold_is_made(damaged: History) -> None:
    repository = damaged.repository
    options = ("--vault", damaged.vault, "--passphrase-file", damaged.password_file, "--fast")
    diskprep("vault", "list", *options)
    assert repository.find_holds() == []
    held = repository.hold("a job", lifetime_s=60).expires
    diskprep("vault", "list", *options)
    (hold,) = repository.find_holds()
    assert hold.expires > held
    hold.release()


def test_ids_are_found_by_their_beginning(history: History) -> None:
    blobs = read_catalogue(history.repository).data
    some = blobs.id(len(blobs) // 2)
    assert some in blobs.starting(some.hex()[:3])
    assert blobs.starting(some.hex()) == [some]
    assert sorted(blobs.starting(some.hex()[:1])) == [
        blobs.id(n) for n in range(len(blobs)) if blobs.id(n).hex()[0] == some.hex()[0]
    ]
    assert [is_hex(text) for text in ("", "0", "g", "A", "f" * 64, "f" * 65)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_ids_that_end_in_zeros_are_told_apart(history: History) -> None:
    blobs = read_catalogue(history.repository).data
    assert list(blobs.numbers(bytes(32) + blobs.id(0) + b"\xff" * 32)) == [-1, 0, -1]
    assert len(blobs.id(0)) == 32


def test_a_container_tells_the_same_as_a_directory(history: History, surveyed: Survey, azurite: Any) -> None:
    local, container = history.repository, azurite.fresh_container()
    for stored in local.store.list():
        container.write(stored.name, [local.store.read(stored.name)])
    remote = Repository(container, local.key, local.id, local.polynomial)
    assert survey(remote) == surveyed
    points = remote.snapshots()
    here, there = (
        (
            list(Search(at, points, Query(patterns=(b"small-1",))).run()),
            list(Difference(at, points[0], points[4]).run()),
        )
        for at in (local, remote)
    )
    assert here == there
    assert len(here[0]) == 2
    lost = local.index.packs[max(local.index.packs, key=lambda name: local.index.packs[name].size_bytes)]
    container.delete(object_name(lost.pack))
    assert {name for point in survey(remote).points for name in point.lacks.missing_packs} == {lost.pack}


def test_an_empty_vault_has_an_empty_list(tmp_path: Path) -> None:
    password = tmp_path / "passphrase"
    password.write_text("a passphrase of the tests")
    restic(tmp_path / "vault", password, "init")
    out, _ = diskprep("vault", "list", "--vault", tmp_path / "vault", "--passphrase-file", password)
    assert out.splitlines()[0].startswith("id")
    assert "#" not in out
