"""The hold: there from publishing to the certificate, whoever else works in the vault meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from trip import JOB, Trip, restic

from diskprep import clock
from diskprep.errors import Locked, NotSignedIn
from diskprep.repository.lock import HOLD_LIFETIME_S, Hold, LockDirectory
from diskprep.repository.lock import place_hold as write_hold
from diskprep.store.directory import DirectoryStore
from diskprep.vault.online import place_hold, refresh_holds
from diskprep.vault.prune import prune


@pytest.fixture
def published(trip: Trip) -> Trip:
    trip.publish()
    return trip


def old_hold(trip: Trip, label: str = JOB, *, days: float = 10) -> Hold:
    """A hold that was placed some days ago."""
    directory = LockDirectory(trip.vault, trip.opened.key)
    return write_hold(directory, label, HOLD_LIFETIME_S - days * 86400)


def test_publishing_twice_leaves_one_hold(published: Trip) -> None:
    place_hold(published.open(), JOB)
    (hold,) = published.open().find_holds()
    place_hold(published.open(), JOB)
    assert [each.name for each in published.open().find_holds()] == [hold.name]
    restic(published.folder / "vault", published.password_file, "prune", ok=False)


def test_an_old_hold_is_prolonged_and_a_fresh_one_is_left_alone(published: Trip) -> None:
    old = old_hold(published)
    assert refresh_holds(published.open()) == (JOB,)
    (fresh,) = published.open().find_holds()
    assert fresh.name != old.name
    assert fresh.expires - clock.now() > timedelta(seconds=HOLD_LIFETIME_S - 60)
    refresh_holds(published.open())
    assert [hold.name for hold in published.open().find_holds()] == [fresh.name]


def test_holds_of_several_jobs_and_machines_become_one_a_job(published: Trip) -> None:
    for label, days in ((JOB, 3), (JOB, 5), ("another-job", 2)):
        old_hold(published, label, days=days)
    assert refresh_holds(published.open()) == ("another-job", JOB)
    assert sorted(hold.label for hold in published.open().find_holds()) == ["another-job", JOB]


def test_a_certified_job_is_held_no_longer_and_others_are(published: Trip) -> None:
    place_hold(published.open(), JOB)
    old_hold(published, "another-job")
    published.deliver()
    published.ingest()
    assert {hold.label for hold in published.open().find_holds()} == {JOB, "another-job"}
    assert refresh_holds(published.open()) == ("another-job",)
    assert {hold.label for hold in published.open().find_holds()} == {"another-job"}


def test_a_hold_refreshed_while_ingestion_ends_is_not_left_behind(
    published: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup elsewhere reads the holds, ingestion ends and releases, the backup writes its own."""
    old_hold(published)
    published.deliver()
    real = Hold.refresh

    def late(self: Hold, *more: Any) -> None:
        monkeypatch.setattr(Hold, "refresh", real)
        published.ingest()
        refresh_holds(published.open())
        assert published.open().find_holds() == []
        real(self, *more)

    monkeypatch.setattr(Hold, "refresh", late)
    assert refresh_holds(published.open()) == ()
    assert published.open().find_holds() == []


def test_who_may_only_read_gets_no_error(published: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = old_hold(published)

    def refuse(*_: Any) -> None:
        raise NotSignedIn("read only")

    monkeypatch.setattr(DirectoryStore, "write", refuse)
    assert refresh_holds(published.open()) == (JOB,)
    assert [each.name for each in published.open().find_holds()] == [hold.name]


def test_a_hold_whose_label_is_no_jobs_name_is_kept(published: Trip) -> None:
    old_hold(published, "Somebody else's")
    assert refresh_holds(published.open()) == ("Somebody else's",)


def test_an_expired_hold_is_not_swept_away_with_stale_locks(published: Trip) -> None:
    hold = old_hold(published, days=61)
    published.open().remove_stale_locks()  # as every backup does
    assert [found.name for found in published.open().find_holds()] == [hold.name]
    with pytest.raises(Locked, match="expired"):
        prune(published.open())
