"""A certificate does not outlive the vault that it speaks of: who finds damage withdraws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support import diskprep
from trip import JOB, SERIALS, Trip, flip_middle
from typer.testing import CliRunner

from diskprep import cleanup, durable
from diskprep.cli import mending, restoring
from diskprep.errors import CleanupRefused, DataDamaged, DiskprepError, NotSignedIn, UsageError
from diskprep.seal import save_seal
from diskprep.seed import Seed, save_seed
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault import outstanding as cleanups
from diskprep.vault.online import refresh_holds

CERTIFICATE = certificates.object_name(JOB)

app = typer.Typer()
app.command("check")(restoring.check)
app.command("repair")(mending.repair)


@pytest.fixture
def certified(trip: Trip) -> Trip:
    """An ingested seed that is not cleaned up yet, and a staging with its papers."""
    seed = Seed(
        job_name=JOB,
        storage_account="account",
        container="container",
        subscription_id="00000000-0000-0000-0000-000000000000",
        resource_group="group",
        location="westeurope",
        hostname="host",
        sources=(str(trip.source),),
        repository_id=trip.seal.repository_id,
        escrow_public_key="0" * 64,
        created="2026-01-01T00:00:00Z",
    )
    save_seed(trip.staging, seed)
    save_seal(trip.staging.seal_file, trip.seal)
    shares = [
        {"serial": s, "size_bytes": 1 << 30, "packs": [n for n, d in trip.placement.items() if d == s]} for s in SERIALS
    ]
    plan = {"format": "diskprep-plan", "version": 1, "job_name": JOB, "seal_digest": trip.seal.digest, "disks": shares}
    durable.write_json(trip.staging.plan_file, plan)
    trip.publish()
    trip.deliver()
    trip.ingest()
    return trip


def run(trip: Trip, command: str, *arguments: Any, error: type[DiskprepError] | None = None) -> str:
    """What the command prints; with `error` it must end with that one, whose words are appended."""
    opening = ("--vault", trip.folder / "vault", "--passphrase-file", trip.password_file)
    done = CliRunner().invoke(app, [command, *(str(argument) for argument in (*arguments, *opening))])
    if error is None:
        assert done.exception is None, done.exception
        return done.stdout
    assert isinstance(done.exception, error), (done.exception, done.output)
    return f"{done.stdout}{done.exception.message} {done.exception.hint}"


def pack(trip: Trip, number: int = 0) -> Path:
    return trip.folder / "vault" / trip.seal.data_packs[number].name


def has_certificate(trip: Trip) -> bool:
    return trip.vault.stat(CERTIFICATE) is not None


def held(trip: Trip) -> list[str]:
    return [hold.label for hold in trip.open().find_holds()]


def part_with(trip: Trip, number: int = 0) -> str:
    """The subset, of 256, that reads this pack."""
    return f"{int(pack(trip, number).name[:2], 16) + 1}/256"


@pytest.mark.parametrize("how", ["all is read", "a part is read", "a pack is gone"])
def test_a_check_that_finds_damage_withdraws_and_no_cleanup_goes_by_the_copy(certified: Trip, how: str) -> None:
    vault, accounted = certified.folder / "vault", [o for serial in SERIALS for o in ("--accounted-for", serial)]
    if how == "a pack is gone":
        pack(certified).unlink()
    else:
        flip_middle(pack(certified))
    options = {"all is read": ["--read-data"], "a part is read": ["--read-data-subset", part_with(certified)]}
    told = run(certified, "check", *options.get(how, []), error=DataDamaged)
    assert f"certificate of {JOB} does not hold any more: it is withdrawn, and the vault is held" in told
    assert "diskprep vault ingest" in told
    assert not has_certificate(certified)
    assert held(certified) == [JOB]
    before = [p for place in (certified.staging.repository, certified.folder / "container") for p in place.rglob("*")]
    arguments = (certified.staging.root, "--vault", vault, "--container", certified.folder / "container")
    for command in ("plan", "run"):
        said = diskprep(
            *("cleanup", command, *arguments, "--certificate", certified.certificate_path, *accounted), code=51
        )[1]
        assert "nothing was deleted" in said
    assert all(path.exists() for path in before)


def test_a_check_that_does_not_read_the_damaged_pack_and_one_of_a_whole_vault_withdraw_nothing(certified: Trip) -> None:
    assert json.loads(run(certified, "check", "--read-data", "--json"))["withdrawn"] == []
    flip_middle(pack(certified))
    run(certified, "check")
    elsewhere = next(f"{n}/256" for n in range(1, 257) if n != int(pack(certified).name[:2], 16) + 1)
    run(certified, "check", "--read-data-subset", elsewhere)
    assert has_certificate(certified)
    assert held(certified) == []


def test_a_vault_that_may_only_be_read_is_told_with_the_words_and_the_same_code(
    certified: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_middle(pack(certified))

    def refuse(*_: Any) -> None:
        raise NotSignedIn("the credential may only read")

    monkeypatch.setattr(DirectoryStore, "write", refuse)
    monkeypatch.setattr(DirectoryStore, "delete", refuse)
    told = run(certified, "check", "--read-data", error=DataDamaged)
    assert f"the certificate of {JOB} does not hold any more and should be withdrawn" in told
    assert "the credential may only read" in told
    assert "clean up nothing by it" in told
    assert has_certificate(certified)


def test_a_certificate_is_withdrawn_though_the_vault_cannot_be_held(
    certified: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_middle(pack(certified))

    def refuse(*_: Any) -> None:
        raise NotSignedIn("no room")

    monkeypatch.setattr(DirectoryStore, "write", refuse)
    document = json.loads(run_json(certified, "check", "--read-data"))
    assert document["withdrawn"] == [{"job_name": JOB, "gone": True, "held": False, "problem": "no room"}]
    assert not has_certificate(certified)


def run_json(trip: Trip, *arguments: str) -> str:
    opening = ("--vault", trip.folder / "vault", "--passphrase-file", trip.password_file, "--json")
    done = CliRunner().invoke(app, [*arguments, *map(str, opening)])
    assert isinstance(done.exception, DataDamaged), done.exception
    return done.stdout


@pytest.mark.parametrize("how", [cleanups.DONE, cleanups.GIVEN_UP])
def test_the_certificate_of_a_cleanup_that_is_done_stays_and_of_one_given_up_goes_without_a_hold(
    certified: Trip, how: str
) -> None:
    cleanups.settle(certified.vault, certificates.load_from_vault(certified.vault, JOB), how)
    flip_middle(pack(certified))
    told = run(certified, "check", "--read-data", error=DataDamaged)
    assert has_certificate(certified) == (how == cleanups.DONE)
    assert ("withdrawn" in told) == (how == cleanups.GIVEN_UP)
    assert held(certified) == []


def test_a_certificate_that_cannot_be_read_is_withdrawn_too(certified: Trip) -> None:
    certified.vault.write(CERTIFICATE, [b"{}"])
    flip_middle(pack(certified))
    run(certified, "check", "--read-data", error=DataDamaged)
    assert not has_certificate(certified)
    assert held(certified) == [JOB]


def test_a_repair_that_only_names_what_is_damaged_withdraws(certified: Trip) -> None:
    flip_middle(pack(certified))
    run(certified, "repair")
    assert has_certificate(certified)
    told = run(certified, "repair", "--read-data", error=DataDamaged)
    assert "1 packs damaged" in told
    assert "it is withdrawn" in told
    assert not has_certificate(certified)
    assert held(certified) == [JOB]


def test_a_repair_mends_at_once_and_the_next_ingestion_certifies_and_ends_the_hold(certified: Trip) -> None:
    earlier = certificates.load(certified.certificate_path)
    pack(certified).unlink()
    told = run(certified, "repair", certified.staging.root)
    assert "1 packs sent again" in told
    assert "it is withdrawn" in told
    assert held(certified) == [JOB]
    with pytest.raises(CleanupRefused, match="any more"):
        cleanup.plan(certified.staging, certified.seal, earlier, container=None, vault=certified.vault)
    run(certified, "check", "--read-data", "--no-lock")
    proven = certified.ingest()
    assert proven.digest != earlier.digest
    cleanup.plan(certified.staging, certified.seal, proven, container=None, vault=certified.vault)
    assert refresh_holds(certified.open()) == ()
    assert held(certified) == []


def test_what_a_check_found_damaged_is_sent_again_and_what_it_found_missing_is_named(certified: Trip) -> None:
    flip_middle(pack(certified))
    run(certified, "check", "--read-data", error=DataDamaged)
    assert "1 packs sent again" in run(certified, "repair", certified.staging.root, "--read-data")
    pack(certified).unlink()
    assert "--all" in run(certified, "repair", certified.staging.root, error=UsageError)
    assert "1 packs sent again" in run(certified, "repair", certified.staging.root, "--all")
