"""A grace period keeps what was removed; soft delete is told; the vault is told when nothing is left."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient, RetentionPolicy
from trip import JOB, Seeded, Trip, flip_middle, new_trip, restic

from diskprep import cleanup, clock
from diskprep.cleanup import Place
from diskprep.errors import CleanupRefused, JobConflict
from diskprep.events import Event, Note
from diskprep.seal import FileKind
from diskprep.store.aside import Aside
from diskprep.store.directory import DirectoryStore
from diskprep.vault.certificate import Certificate
from diskprep.vault.outstanding import outstanding

WEEK = timedelta(days=7)


@pytest.fixture
def certified(trip: Trip) -> tuple[Trip, Certificate]:
    trip.publish()
    trip.deliver()
    return trip, trip.ingest()


def execute(trip: Trip, certificate: Certificate, **more: Any) -> int:
    stores: dict[str, Any] = {"container": more.pop("container", trip.container), "vault": trip.vault}
    plan = cleanup.plan(trip.staging, trip.seal, certificate, **stores)
    return cleanup.run(plan, trip.staging, trip.seal, certificate, **stores, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pass_by(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = clock.now() + timedelta(days=days)
    monkeypatch.setattr(clock, "now", lambda: now)


def test_what_has_a_grace_period_is_moved_aside_and_comes_back_whole(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    before = files(trip.staging.repository), files(trip.folder / "container")
    assert execute(trip, certificate, grace=WEEK) > certificate.data_bytes
    openers = {file.name for file in trip.seal.of_kind(FileKind.CONFIG, FileKind.KEY)}
    aside = Aside(trip.staging.repository).batches()
    assert {file.name for batch in aside for file in batch.files} == before[0].keys() - openers
    plan = cleanup.plan(trip.staging, trip.seal, certificate, container=trip.container, vault=trip.vault)
    assert sum("were moved aside" in note for note in plan.notes) == 2
    assert cleanup.undo(trip.staging, trip.container) > certificate.data_bytes
    assert (files(trip.staging.repository), files(trip.folder / "container")) == before
    assert cleanup.undo(trip.staging, trip.container) == 0
    restic(trip.staging.repository, trip.password_file, "check", "--read-data")


def test_a_later_run_deletes_what_is_due_and_nothing_sooner(
    certified: tuple[Trip, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    trip, certificate = certified
    execute(trip, certificate, grace=WEEK)
    assert outstanding(trip.vault).keys() == {JOB}  # what is aside may still come back, so the vault must stay
    pass_by(monkeypatch, 6)
    execute(trip, certificate, grace=WEEK)
    assert len(Aside(trip.staging.repository).batches()) == 1
    pass_by(monkeypatch, 1.01)
    execute(trip, certificate, grace=WEEK)
    assert Aside(trip.staging.repository).batches() == []
    assert files(trip.folder / "container") == {}
    assert outstanding(trip.vault) == {}


def test_what_is_aside_is_deleted_only_when_the_vault_still_has_it(
    certified: tuple[Trip, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    trip, certificate = certified
    execute(trip, certificate, grace=WEEK)
    pass_by(monkeypatch, 8)
    pack = trip.seal.data_packs[0].name
    data = trip.vault.read(pack)
    trip.vault.delete(pack)
    before = files(trip.staging.root)
    with pytest.raises(CleanupRefused, match="the vault has changed"):
        execute(trip, certificate)
    assert files(trip.staging.root) == before
    trip.vault.write(pack, [data])
    flip_middle(trip.folder / "vault" / pack)
    with pytest.raises(CleanupRefused, match="not what was sealed"):
        execute(trip, certificate, read_vault=True)
    assert files(trip.staging.root) == before


def test_a_grace_period_can_be_ended_early(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    execute(trip, certificate, grace=WEEK)
    execute(trip, certificate, end_grace=True)
    assert files(trip.folder / "container") == {}
    assert outstanding(trip.vault) == {}


def test_moving_aside_cut_short_goes_on_and_nothing_is_lost(
    certified: tuple[Trip, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    trip, certificate = certified
    before = files(trip.staging.repository)
    real, count = Aside.move, iter(range(100))

    def cut(self: Aside, name: str, until: Any) -> None:
        if next(count) == 9:
            raise KeyboardInterrupt
        real(self, name, until)

    with monkeypatch.context() as patch:
        patch.setattr(Aside, "move", cut)
        with pytest.raises(KeyboardInterrupt):
            execute(trip, certificate, grace=WEEK)
    execute(trip, certificate, grace=WEEK)
    assert [s.name for s in trip.container.list()] == []
    cleanup.undo(trip.staging, trip.container)
    assert files(trip.staging.repository) == before


def test_what_was_written_again_meanwhile_is_not_replaced(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    execute(trip, certificate, grace=WEEK, places=[Place.CONTAINER])
    name = trip.seal.data_packs[0].name
    trip.container.write(name, [b"somebody else's"])
    with pytest.raises(JobConflict, match="there is another"):
        cleanup.undo(trip.staging, trip.container)
    assert trip.container.read(name) == b"somebody else's"


def test_the_vault_under_another_name_is_not_moved_aside(certified: tuple[Trip, Certificate], tmp_path: Path) -> None:
    trip, certificate = certified
    alias = tmp_path / "alias"
    alias.mkdir()
    shutil.rmtree(trip.folder / "container")
    (trip.folder / "vault/data").rename(alias / "data")
    (trip.folder / "vault/data").symlink_to(alias / "data")
    trip.container = type(trip.vault)(alias)  # type: ignore[call-arg]
    before = files(alias)
    with pytest.raises(CleanupRefused, match="the vault"):
        execute(trip, certificate, grace=WEEK, places=[Place.CONTAINER])
    assert files(alias) == before


def test_a_vault_that_was_imported_in_place_is_left_alone_and_the_staging_goes(trip: Trip) -> None:
    trip.publish()
    trip.container = trip.vault
    trip.deliver()
    certificate = trip.ingest()
    plan = cleanup.plan(trip.staging, trip.seal, certificate, container=trip.container, vault=trip.vault)
    assert plan.count(Place.CONTAINER) == 0
    assert any("it is the vault itself" in line for line in plan.lines())
    assert execute(trip, certificate) > certificate.data_bytes
    assert {s.name for s in trip.vault.list()} >= {file.name for file in trip.seal.data_packs}
    assert outstanding(trip.vault) == {}


def test_the_vault_is_told_only_when_both_places_are_empty(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    execute(trip, certificate, places=[Place.STAGING])
    assert outstanding(trip.vault).keys() == {JOB}
    execute(trip, certificate, places=[Place.CONTAINER])
    assert outstanding(trip.vault) == {}


def test_without_a_container_the_staging_goes_and_the_vault_still_waits(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    assert execute(trip, certificate, container=None, places=[Place.STAGING]) > 0
    assert outstanding(trip.vault).keys() == {JOB}
    assert {s.name for s in trip.container.list()} == {file.name for file in trip.seal.data_packs}


def test_another_container_than_the_imports_does_not_end_the_wait_for_it(
    certified: tuple[Trip, Certificate], tmp_path: Path
) -> None:
    trip, certificate = certified
    (tmp_path / "empty").mkdir()
    events: list[Event] = []
    execute(trip, certificate, container=DirectoryStore(tmp_path / "empty"), emit=events.append)
    assert outstanding(trip.vault).keys() == {JOB}
    assert any(trip.container.location in event.text for event in events if isinstance(event, Note))
    (tmp_path / "alias").symlink_to(trip.container.location)
    execute(trip, certificate, container=DirectoryStore(tmp_path / "alias"), emit=events.append)
    assert list(trip.container.list()) == []
    assert outstanding(trip.vault) == {}


def test_the_plan_says_why(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    plan = cleanup.plan(trip.staging, trip.seal, certificate, container=trip.container, vault=trip.vault)
    assert certificate.digest[:12] in plan.why
    assert certificate.method in plan.why
    assert f"because {plan.why}" in plan.lines()


def test_what_the_account_does_with_deleted_blobs_is_found_and_told(
    azurite: Any, restic_seeded: Seeded, tmp_path: Path
) -> None:
    trip = new_trip(restic_seeded, tmp_path, azurite.fresh_container(), azurite.fresh_container())
    trip.publish()
    trip.deliver()
    certificate = trip.ingest()
    service = BlobServiceClient(
        azurite.account.url,
        credential={"account_name": azurite.account_name, "account_key": azurite.key.reveal()},
        api_version="2025-11-05",
    )

    def notes(*, days: int) -> str:
        kept = RetentionPolicy(enabled=True, days=days) if days else RetentionPolicy(enabled=False)
        service.set_service_properties(delete_retention_policy=kept)
        plan = cleanup.plan(trip.staging, trip.seal, certificate, container=trip.container, vault=trip.vault)
        return " ".join(plan.notes)

    assert "gone at once" in notes(days=0)
    before = {s.name for s in trip.container.list()}
    with pytest.raises(CleanupRefused, match="keeps deleted blobs for 0 days, not for 7"):
        execute(trip, certificate, grace=WEEK)
    assert {s.name for s in trip.container.list()} == before
    assert "keeps deleted blobs for 14 days" in notes(days=14)
    try:
        assert execute(trip, certificate, grace=WEEK, places=[Place.CONTAINER]) == certificate.data_bytes
    finally:
        notes(days=0)
