"""`cleanup` as a user gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import diskprep, diskprep_json
from trip import SERIALS, Trip


@pytest.fixture
def certified(trip: Trip) -> tuple[Trip, tuple[str | Path, ...]]:
    """An ingested seed whose plan has two disks, and the arguments that name it."""
    trip.write_papers()
    trip.publish()
    trip.deliver()
    trip.ingest()
    vault, container = trip.folder / "vault", trip.folder / "container"
    certificate = ("--vault", vault, "--container", container, "--certificate", trip.certificate_path)
    return trip, (trip.staging.root, *certificate)


def packs_in(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "data").rglob("*"))


def test_disks_that_are_outstanding_are_named_and_can_be_accounted_for(
    certified: tuple[Trip, tuple[str | Path, ...]],
) -> None:
    trip, arguments = certified
    told = diskprep("cleanup", "run", *arguments, code=51)[1]
    assert "2 disks are outstanding" in told
    assert "--accounted-for" in told
    diskprep("cleanup", "run", *arguments, "--accounted-for", "disk-a", code=51)
    assert packs_in(trip.folder / "container") == len(trip.seal.data_packs)
    done = [option for serial in SERIALS for option in ("--accounted-for", serial)]
    out, err = diskprep("cleanup", "plan", *arguments, *done)
    assert "because certificate" in out
    assert "--accounted-for DISK-A" in err
    diskprep("cleanup", "run", *arguments, *done)
    assert packs_in(trip.folder / "container") == packs_in(trip.staging.repository) == 0


def test_places_are_emptied_apart_and_a_grace_period_is_undone(
    certified: tuple[Trip, tuple[str | Path, ...]],
) -> None:
    trip, arguments = certified
    done = [option for serial in SERIALS for option in ("--accounted-for", serial)]
    diskprep("cleanup", "run", *arguments, *done, "--staging-only", "--container-only", code=2)
    container = diskprep_json("cleanup", "run", *arguments, *done, "--container-only", "--grace", "7")
    assert container["removed_bytes"] == container["may_go"]["container"]["bytes"] > 0
    assert packs_in(trip.folder / "container") == 0
    assert packs_in(trip.staging.repository) > 0
    plan = diskprep_json("cleanup", "plan", *arguments, *done)
    assert plan["may_go"]["container"]["objects"] == 0
    assert any("moved aside" in note for note in plan["notes"])
    diskprep("cleanup", "undo", trip.staging.root, "--container", trip.folder / "container")
    assert packs_in(trip.folder / "container") == len(trip.seal.data_packs)
