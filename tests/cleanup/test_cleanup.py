"""Nothing is deleted that a certificate does not cover, and nothing that cannot be made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trip import JOB, PASSPHRASE, Seeded, Trip, flip_middle, new_trip, overwrite, restic

from diskprep import cleanup
from diskprep.cleanup import CleanupPlan, Place
from diskprep.errors import CleanupRefused, WrongPassphrase
from diskprep.repository import keys
from diskprep.repository.repository import open_repository
from diskprep.repository.slots import Slots
from diskprep.seal import FileKind
from diskprep.secrets import Secret
from diskprep.store import BlobStore, Store, StoredObject
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate


@pytest.fixture
def certified(trip: Trip) -> tuple[Trip, Certificate]:
    """An ingested seed, with everything beside it that must stay."""
    trip.publish()
    trip.deliver()
    trip.container.write("waies/copy-log.xml", [b"<log/>"])
    for path in (trip.staging.seed_file, trip.staging.seal_file, trip.staging.plan_file, trip.staging.job_file):
        path.write_text("{}")
    for folder in (trip.staging.journals, trip.staging.escrow):
        folder.mkdir()
        (folder / "DISK-A").write_bytes(b"kept")
    return trip, trip.ingest()


def everything(trip: Trip) -> dict[str, dict[str, int]]:
    stores: dict[str, Store] = {"container": trip.container, "vault": trip.vault}
    found = {name: {s.name: s.size_bytes for s in store.list()} for name, store in stores.items()}
    root = trip.staging.root
    found["staging"] = {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    return found


def make_plan(trip: Trip, certificate: Certificate | None) -> CleanupPlan:
    return cleanup.plan(trip.staging, trip.seal, certificate, container=trip.container, vault=trip.vault)


def execute(plan: CleanupPlan, trip: Trip, certificate: Certificate | None, *places: Place) -> int:
    stores: dict[str, Store] = {"container": trip.container, "vault": trip.vault}
    return cleanup.run(plan, trip.staging, trip.seal, certificate, places=places or tuple(Place), **stores)


def test_what_is_covered_goes_and_what_cannot_be_made_again_stays(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    vault = everything(trip)["vault"]
    plan = make_plan(trip, certificate)
    openers = trip.seal.of_kind(FileKind.CONFIG, FileKind.KEY)  # the escrow cannot be opened without them
    whole = sum(file.size_bytes for file in trip.seal.files if file not in openers)
    assert (plan.size_bytes(Place.STAGING), plan.size_bytes(Place.CONTAINER)) == (whole, certificate.data_bytes)
    assert any("escrow" in line for line in plan.lines())
    assert execute(plan, trip, certificate) == whole + certificate.data_bytes
    after = everything(trip)
    assert after["vault"].keys() - vault.keys() == {f"x-seed/settled-{JOB}.json"}
    assert vault.items() <= after["vault"].items()
    assert set(after["container"]) == {"waies/copy-log.xml"}
    assert set(after["staging"]) == {
        *("seed.json", "seal.json", "plan.json", "job.json", "journals/DISK-A", "escrow/DISK-A"),
        *(f"repository/{file.name}" for file in openers),
    }
    restic(trip.folder / "vault", trip.password_file, "check", "--read-data")


def test_the_places_are_emptied_on_their_own(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    before, plan = everything(trip), make_plan(trip, certificate)
    assert execute(plan, trip, certificate, Place.CONTAINER) == certificate.data_bytes
    assert everything(trip)["staging"] == before["staging"]
    execute(plan, trip, certificate, Place.STAGING)
    left = {str(p.relative_to(trip.staging.repository)) for p in trip.staging.repository.rglob("*") if p.is_file()}
    assert left == {file.name for file in trip.seal.of_kind(FileKind.CONFIG, FileKind.KEY)}


def test_a_cleanup_cut_short_goes_on(certified: tuple[Trip, Certificate], monkeypatch: pytest.MonkeyPatch) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    real, count = type(trip.container).delete, iter(range(100))

    def cut(self: Any, name: str) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        real(self, name)

    monkeypatch.setattr(type(trip.container), "delete", cut)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, trip, certificate)
    monkeypatch.undo()
    assert execute(plan, trip, certificate) > 0
    assert execute(plan, trip, certificate) == 0
    assert set(everything(trip)["container"]) == {"waies/copy-log.xml"}


def refused(trip: Trip, plan: CleanupPlan, certificate: Certificate | None, *places: Place) -> str:
    """Run the plan; it must be refused with nothing deleted anywhere."""
    before = everything(trip)
    with pytest.raises(CleanupRefused) as caught:
        execute(plan, trip, certificate, *places)
    assert everything(trip) == before
    return caught.value.message


def test_without_a_certificate_nothing_goes(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    with pytest.raises(CleanupRefused):
        make_plan(trip, None)
    plan = make_plan(trip, certificate)
    assert "no certificate" in refused(trip, plan, None)
    trip.vault.delete(certificates.object_name(JOB))
    assert "copy of the certificate" in refused(trip, plan, certificate)


@pytest.mark.parametrize(
    "edit", [{"seal_digest": "0" * 64}, {"files_digest": "0" * 64}, {"job_name": "other-job"}, {"snapshots": ()}]
)
def test_a_certificate_that_covers_something_else_is_refused(
    certified: tuple[Trip, Certificate], edit: dict[str, Any]
) -> None:
    trip, certificate = certified
    other = replace(certificate, **edit)
    with pytest.raises(CleanupRefused):
        make_plan(trip, other)
    refused(trip, make_plan(trip, certificate), other)


def test_a_certificate_that_the_vault_does_not_have_is_refused(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    forged = replace(certificate, created="2020-01-01T00:00:00Z")
    with pytest.raises(CleanupRefused, match="another certificate"):
        make_plan(trip, forged)
    plan = replace(make_plan(trip, certificate), certificate_digest=forged.digest)
    assert "another certificate" in refused(trip, plan, forged)


@pytest.mark.parametrize("kind", list(FileKind))
def test_a_vault_that_lost_something_is_refused(certified: tuple[Trip, Certificate], kind: FileKind) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    trip.vault.delete(trip.seal.of_kind(kind)[0].name)
    with pytest.raises(CleanupRefused):
        make_plan(trip, certificate)
    assert "the vault has changed" in refused(trip, plan, certificate)


@pytest.mark.parametrize("changed", ["before ingestion", "after the certificate", "after the plan"])
def test_a_passphrase_that_was_changed_in_the_vault_is_no_hindrance(trip: Trip, changed: str) -> None:
    new = Secret("the passphrase after a change")

    def change(moment: str) -> None:
        if moment == changed:
            opened = open_repository(trip.vault, Secret(PASSPHRASE))
            Slots(opened).change(new, cost=keys.ScryptCost(n=16, r=1, p=1))

    trip.publish()
    trip.deliver()
    change("before ingestion")
    certificate = trip.ingest()
    change("after the certificate")
    plan = make_plan(trip, certificate)
    change("after the plan")
    openers = trip.seal.of_kind(FileKind.CONFIG, FileKind.KEY)
    whole = sum(file.size_bytes for file in trip.seal.files if file not in openers)
    assert execute(plan, trip, certificate) == whole + certificate.data_bytes
    assert {str(p.relative_to(trip.staging.repository)) for p in trip.staging.repository.rglob("*") if p.is_file()} == {
        file.name
        for file in openers  # the escrow still opens with the old passphrase
    }
    with pytest.raises(WrongPassphrase):
        open_repository(trip.vault, Secret(PASSPHRASE))
    trip.password_file = trip.folder / "new passphrase"
    trip.password_file.write_text(new.reveal())
    restic(trip.folder / "vault", trip.password_file, "check", "--read-data")


@pytest.mark.parametrize("fault", ["damaged", "empty", "not its name", "a stranger beside none"])
def test_a_vault_without_a_whole_key_file_is_refused(certified: tuple[Trip, Certificate], fault: str) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    (sealed,) = trip.seal.of_kind(FileKind.KEY)
    path = trip.folder / "vault" / sealed.name
    if fault == "damaged":
        flip_middle(path)
    elif fault == "empty":
        overwrite(path, b"")
    elif fault == "not its name":
        path.rename(path.with_name("0" * 64))
    else:
        path.rename(path.with_name("README"))
    with pytest.raises(CleanupRefused, match="none of its key files"):
        make_plan(trip, certificate)
    assert "none of its key files" in refused(trip, plan, certificate)


def test_a_key_file_in_the_container_is_nothing_that_cleanup_deletes(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    (sealed,) = trip.seal.of_kind(FileKind.KEY)
    trip.container.write(sealed.name, [trip.vault.read(sealed.name)])
    execute(make_plan(trip, certificate), trip, certificate)
    assert set(everything(trip)["container"]) == {"waies/copy-log.xml", sealed.name}


def test_a_vault_whose_pack_got_shorter_is_refused(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    path = trip.folder / "vault" / trip.seal.data_packs[-1].name
    overwrite(path, path.read_bytes()[:-1])
    assert "the vault has changed" in refused(trip, plan, certificate, Place.CONTAINER)


def test_what_the_certificate_does_not_cover_stays(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    trip.container.write("data/aa/" + "a" * 64, [b"somebody else's"])
    (trip.staging.repository / "locks").mkdir(exist_ok=True)
    (trip.staging.repository / "locks/one").write_bytes(b"lock")
    plan = make_plan(trip, certificate)
    reasons = {kept.what: kept.reason for kept in plan.kept}
    assert "not covered" in reasons["container: data/aa/" + "a" * 64]
    assert "not covered" in reasons["staging: locks/one"]
    execute(plan, trip, certificate)
    assert trip.container.stat("data/aa/" + "a" * 64) is not None
    assert (trip.staging.repository / "locks/one").exists()


def test_an_object_that_changed_after_the_plan_is_refused(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    trip.container.write(trip.seal.data_packs[0].name, [b"something else by now"])
    assert "not the" in refused(trip, plan, certificate, Place.CONTAINER)


def test_the_vault_itself_is_never_cleaned(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    plan = make_plan(trip, certificate)
    real = trip.container
    trip.container = trip.vault
    assert "is the vault itself" in refused(trip, plan, certificate, Place.CONTAINER)
    trip.container = real
    (trip.staging.root / "moved").mkdir()
    trip.staging.repository.rename(trip.staging.root / "moved/repository")
    Path(trip.staging.repository).symlink_to(trip.folder / "vault")
    assert "is the vault itself" in refused(trip, plan, certificate, Place.STAGING)


def test_the_vault_under_another_name_is_not_emptied(certified: tuple[Trip, Certificate], tmp_path: Path) -> None:
    trip, certificate = certified
    alias = tmp_path / "alias"
    alias.mkdir()
    (alias / "data").symlink_to(trip.folder / "vault/data")  # a bind mount or another host name does the same
    before = everything(trip)["vault"]
    for store in (_Renamed(trip.vault), DirectoryStore(alias)):
        plan = cleanup.plan(trip.staging, trip.seal, certificate, container=_NoConfig(store), vault=trip.vault)
        if not [removal for removal in plan.removals if removal.place is Place.CONTAINER]:
            continue
        for container in (store, _NoConfig(store)):
            with pytest.raises(CleanupRefused, match="the vault"):
                cleanup.run(plan, trip.staging, trip.seal, certificate, container=container, vault=trip.vault)
    assert everything(trip)["vault"] == before


def test_a_container_that_is_another_repository_is_not_touched(
    certified: tuple[Trip, Certificate], tmp_path: Path
) -> None:
    trip, certificate = certified
    other = DirectoryStore(tmp_path / "other")
    restic(tmp_path / "other", trip.password_file, "init")
    (config,) = trip.seal.of_kind(FileKind.CONFIG)
    there = other.stat(config.name)
    assert there is not None
    assert there.size_bytes == config.size_bytes  # by name and size it is what the certificate covers
    with pytest.raises(CleanupRefused, match="another repository"):
        cleanup.plan(trip.staging, trip.seal, certificate, container=other, vault=trip.vault)
    plan = cleanup.plan_from_listings(
        trip.seal, certificate, staging=(), container=other.list(), vault=trip.vault.list()
    )
    assert plan.removals == ()
    second = DirectoryStore(tmp_path / "second")  # the same seed in a vault of another place
    for file in trip.seal.files:
        second.write(file.name, [trip.vault.read(file.name)])
    plan = make_plan(trip, certificate)
    with pytest.raises(CleanupRefused, match="another repository"):
        cleanup.run(plan, trip.staging, trip.seal, certificate, container=second, vault=trip.vault)
    restic(tmp_path / "other", trip.password_file, "check")
    restic(tmp_path / "second", trip.password_file, "check", "--read-data")


class _NoConfig:
    """A store that does not show that it is a repository."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def stat(self, name: str) -> StoredObject | None:
        found: StoredObject | None = None if name == "config" else self._store.stat(name)
        return found


class _Renamed:
    """A store under another name, without the object that would give it away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def location(self) -> str:
        return "somewhere else"

    def stat(self, name: str) -> StoredObject | None:
        return None if name.startswith("x-seed/") else self._store.stat(name)


def test_planning_is_arithmetic_on_listings(certified: tuple[Trip, Certificate]) -> None:
    trip, certificate = certified
    vault = [StoredObject(name=file.name, size_bytes=file.size_bytes) for file in trip.seal.files]
    plan = cleanup.plan_from_listings(trip.seal, certificate, staging=[], container=[], vault=vault)
    assert plan.removals == ()
    with pytest.raises(CleanupRefused):
        cleanup.plan_from_listings(trip.seal, certificate, staging=[], container=[], vault=vault[1:])


def test_a_container_of_a_blob_service_is_emptied_too(azurite: Any, restic_seeded: Seeded, tmp_path: Path) -> None:
    container: BlobStore = azurite.fresh_container()
    trip = new_trip(restic_seeded, tmp_path, container, azurite.fresh_container())
    trip.publish()
    trip.deliver()
    certificate = trip.ingest()
    assert execute(make_plan(trip, certificate), trip, certificate, Place.CONTAINER) == certificate.data_bytes
    assert list(container.list()) == []
