"""`vault repair` as a user gives it: what it names, what it refuses to guess, and its exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from trip import JOB, SERIALS, Trip, restic
from typer.testing import CliRunner

from diskprep.cli import mending
from diskprep.errors import DataDamaged, UsageError
from diskprep.store.directory import DirectoryStore

app = typer.Typer()
app.command("repair")(mending.repair)


@pytest.fixture
def arrived(trip: Trip) -> Trip:
    """A vault that lacks disk A's packs and one of disk B's, and a staging with its papers."""
    trip.write_papers()
    trip.publish()
    for name in on(trip, SERIALS[1])[1:]:
        trip.vault.write(name, [DirectoryStore(trip.staging.repository).read(name)])
    return trip


def on(trip: Trip, serial: str) -> list[str]:
    return [name for name, disk in trip.placement.items() if disk == serial]


def run(trip: Trip, *arguments: Any, error: type[Exception] | None = None) -> str:
    """What the command prints; with `error`, it must end with that one, whose message is appended."""
    opening = ("--vault", trip.folder / "vault", "--passphrase-file", trip.password_file)
    done = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *opening)])
    if error is None:
        assert done.exception is None, done.exception
        return done.stdout
    assert isinstance(done.exception, error), (done.exception, done.output)
    return f"{done.stdout}{getattr(done.exception, 'message', '')} {getattr(done.exception, 'hint', '')}"


def names(trip: Trip) -> set[str]:
    return {stored.name for stored in trip.vault.list() if not stored.name.startswith("locks/")}


def test_without_anything_to_mend_with_it_names_what_is_missing_and_changes_nothing(arrived: Trip) -> None:
    before = names(arrived)
    told = run(arrived, error=DataDamaged)
    assert f"{len(on(arrived, SERIALS[0])) + 1} packs missing" in told
    assert "would be lost with them" in told
    assert "name the staging" in told
    assert names(arrived) == before


def test_while_disks_travel_the_lost_one_is_to_be_named_and_only_its_packs_are_sent(arrived: Trip) -> None:
    hold = arrived.open().hold(JOB)
    assert "--disk SERIAL" in run(arrived, arrived.staging.root, error=UsageError)
    assert "no pack travels" in run(arrived, arrived.staging.root, "--disk", "DISK-X", error=UsageError)
    told = run(arrived, arrived.staging.root, "--disk", SERIALS[0])
    assert f"{len(on(arrived, SERIALS[0]))} packs missing, on disk {SERIALS[0]}" in told
    assert f"{len(on(arrived, SERIALS[0]))} packs sent again" in told
    assert names(arrived) >= set(on(arrived, SERIALS[0]))
    assert on(arrived, SERIALS[1])[0] not in names(arrived)
    hold.release()
    assert "1 packs sent again" in run(arrived, arrived.staging.root)
    restic(arrived.folder / "vault", arrived.password_file, "check", "--read-data")


def test_the_source_mends_what_no_staging_has(arrived: Trip) -> None:
    document = json.loads(run(arrived, "--source", arrived.source, "--json"))
    assert document["dropped"] == len(document["packs"]) == len(on(arrived, SERIALS[0])) + 1
    assert document["stored_blobs"] > 0
    assert (document["lost"], [pack for pack in document["packs"] if pack["left"]]) == ([], [])
    assert "every pack of the index is there" in run(arrived)
    restic(arrived.folder / "vault", arrived.password_file, "check", "--read-data")


def test_what_nobody_has_is_named_and_ends_with_an_error_every_time(arrived: Trip) -> None:
    for _ in range(2):
        told = run(arrived, "--drop-lost", error=DataDamaged)
        assert f"lost: {arrived.source}" in told
        assert "cannot be restored" in told


def test_a_staging_of_another_repository_is_refused(arrived: Trip) -> None:
    path = arrived.staging.seed_file
    path.write_text(path.read_text().replace(arrived.seal.repository_id, "0" * 64))
    assert "another repository" in run(arrived, arrived.staging.root, error=UsageError)
