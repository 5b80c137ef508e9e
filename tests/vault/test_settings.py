"""What a vault's settings say, who may change them, and what is refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from trip import Trip, overwrite, restic

from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, Locked, UsageError
from diskprep.repository import codec
from diskprep.repository.repository import Repository
from diskprep.store.directory import DirectoryStore
from diskprep.vault import settings as module
from diskprep.vault.settings import OBJECT, Redundancy, Retention, Settings, change_settings, load_settings


@pytest.fixture
def empty(trip: Trip) -> Repository:
    """A vault that has no recovery point yet."""
    (trip.folder / "empty").mkdir()
    return Repository(DirectoryStore(trip.folder / "empty"), trip.opened.key, trip.opened.id, trip.opened.polynomial)


def test_a_new_vault_has_no_settings_and_asking_writes_none(empty: Repository) -> None:
    assert load_settings(empty) == change_settings(empty) == Settings()
    assert not Settings().retention.is_set
    assert list(empty.store.list()) == []


def test_what_is_not_given_stays(empty: Repository) -> None:
    change_settings(empty, redundancy=Redundancy.LRS, daily=7, yearly=3)
    changed = change_settings(empty, daily=14, weekly=4)
    assert changed == load_settings(empty)
    assert changed.redundancy is Redundancy.LRS
    assert asdict(changed.retention) == {"daily": 14, "weekly": 4, "monthly": 0, "yearly": 3}
    assert change_settings(empty, daily=0, weekly=0, yearly=0).retention == Retention()


def test_the_redundancy_is_fixed_with_the_first_recovery_point(empty: Repository, trip: Trip) -> None:
    change_settings(empty, redundancy=Redundancy.LRS)
    assert change_settings(empty, redundancy=Redundancy.GRS).redundancy is Redundancy.GRS
    trip.publish()
    vault = trip.open()
    assert change_settings(vault, redundancy=Redundancy.RA_GRS).redundancy is Redundancy.RA_GRS  # it was never said
    with pytest.raises(JobConflict, match="RA-GRS"):
        change_settings(vault, redundancy=Redundancy.LRS, daily=7)
    assert load_settings(vault) == Settings(redundancy=Redundancy.RA_GRS)
    assert change_settings(vault, redundancy=Redundancy.RA_GRS, daily=7).retention.daily == 7


def test_a_hold_is_no_hindrance_and_somebody_at_work_is(trip: Trip) -> None:
    trip.publish()
    vault = trip.open()
    vault.hold("test-job")
    change_settings(vault, daily=7)
    with trip.open().lock(), pytest.raises(Locked):
        change_settings(vault, daily=8)
    assert load_settings(vault).retention.daily == 7


def test_restic_does_not_mind_them(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    change_settings(trip.open(), redundancy=Redundancy.GRS, monthly=12)
    restic(trip.folder / "vault", trip.password_file, "check")
    restic(trip.folder / "vault", trip.password_file, "prune")
    assert load_settings(trip.open()).retention.monthly == 12


@pytest.mark.parametrize("count", [-1, 100_001, True, 1.5])
def test_what_is_no_count_is_refused_and_nothing_is_written(empty: Repository, count: int) -> None:
    with pytest.raises(UsageError):
        change_settings(empty, weekly=count)
    assert load_settings(empty) == Settings()


def test_they_cannot_be_read_or_changed_without_the_key(empty: Repository) -> None:
    change_settings(empty, redundancy=Redundancy.LRS, daily=7)
    path = Path(str(empty.store.location)) / OBJECT
    sealed = path.read_bytes()
    assert b"LRS" not in sealed
    overwrite(path, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(DataDamaged, match=OBJECT):
        load_settings(empty)
    with pytest.raises(DataDamaged, match=OBJECT):
        change_settings(empty, daily=1)


def test_those_of_another_vault_and_of_a_newer_version_are_refused(empty: Repository) -> None:
    other = Repository(empty.store, empty.key, "0" * 64, empty.polynomial)
    change_settings(other, daily=1)
    with pytest.raises(DataDamaged, match="not of this vault"):
        load_settings(empty)
    document = {"format": module.FORMAT, "version": 2, "repository": empty.id}
    empty.store.write(OBJECT, [empty.key.seal(codec.encode_json(document))])
    with pytest.raises(FormatTooNew):
        load_settings(empty)
    for damage in ({"redundancy": "ZRS", "retention": {}}, {"redundancy": None, "retention": {"hourly": 1}}, {}):
        document = {"format": module.FORMAT, "version": 1, "repository": empty.id, **damage}
        empty.store.write(OBJECT, [empty.key.seal(codec.encode_json(document))])
        with pytest.raises(DataDamaged):
            load_settings(empty)
