"""A job that can never be certified is given up: its hold ends, nothing is certified, and the vault lives on."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import sys
from typing import Any

import pytest
from support import diskprep
from trip import JOB, SERIALS, Trip, restic

from diskprep import cleanup, durable
from diskprep.errors import CleanupRefused
from diskprep.repository.lock import HOLD_LIFETIME_S, LockDirectory
from diskprep.repository.lock import place_hold as write_hold
from diskprep.seal import save_seal
from diskprep.seed import Seed, save_seed
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.online import place_hold


@pytest.fixture
def lacking(trip: Trip) -> Trip:
    """A published vault, held, that lacks all packs of disk A; the staging has its papers."""
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
    shares = [{"serial": s, "packs": [n for n, d in trip.placement.items() if d == s]} for s in SERIALS]
    durable.write_json(trip.staging.plan_file, {"format": "diskprep-plan", "version": 1, "disks": shares})
    trip.publish()
    for name, serial in trip.placement.items():
        if serial == SERIALS[1]:
            trip.vault.write(name, [DirectoryStore(trip.staging.repository).read(name)])
    place_hold(trip.open(), JOB)
    return trip


def lost_packs(trip: Trip) -> int:
    return sum(serial == SERIALS[0] for serial in trip.placement.values())


def give_up(trip: Trip, *arguments: Any, code: int = 0) -> tuple[str, str]:
    opening = ("--vault", trip.folder / "vault", "--passphrase-file", trip.password_file)
    return diskprep("vault", "give-up", *arguments, *opening, code=code)


def held(trip: Trip) -> list[str]:
    return sorted(hold.label for hold in trip.open().find_holds())


def test_what_is_lost_is_told_first_and_the_jobs_name_is_needed(lacking: Trip) -> None:
    out, err = give_up(lacking, lacking.staging.root, code=2)
    assert out == ""
    assert f"{lost_packs(lacking)} packs missing, on disk {SERIALS[0]}" in err
    assert f"{lost_packs(lacking)} of them the staging still has: `diskprep vault repair" in err
    assert f"lost: {lacking.source}" in err
    assert "of 1 recovery points are lost with" in err
    assert f"--confirm {JOB}" in err
    give_up(lacking, "--confirm", "another-job", code=2)
    assert held(lacking) == [JOB]


def test_afterwards_the_vault_lives_on_with_restic_and_nothing_may_be_cleaned_up(lacking: Trip) -> None:
    vault, opening = lacking.folder / "vault", ("--passphrase-file", lacking.password_file)
    shutil.rmtree(lacking.staging.root)  # and the source is gone, too
    assert "locked" in restic(vault, lacking.password_file, "prune", ok=False)
    diskprep("vault", "prune", "--vault", vault, *opening, code=11)
    assert "while its disks travel" in diskprep("vault", "check", "--vault", vault, *opening, code=11)[1]
    assert "is missing" in diskprep("vault", "check", "--no-lock", "--vault", vault, *opening, code=30)[0]
    document = json.loads(give_up(lacking, "--confirm", JOB, "--json")[0])
    assert (document["job_name"], document["holds_ended"]) == (JOB, 1)
    assert len(document["packs"]) == lost_packs(lacking)
    assert document["lost"]
    assert held(lacking) == []
    assert lacking.vault.stat(certificates.object_name(JOB)) is None
    give_up(lacking, "--confirm", JOB, code=10)
    told = restic(vault, lacking.password_file, "check", ok=False)
    assert "locked" not in told
    diskprep("vault", "check", "--vault", vault, *opening, code=30)
    diskprep("vault", "repair", "--vault", vault, *opening, "--drop-lost", code=30)
    fresh = lacking.folder / "fresh"
    fresh.mkdir()
    (fresh / "file").write_bytes(b"still here")
    diskprep("vault", "backup", fresh, "--vault", vault, *opening)
    diskprep("vault", "forget", lacking.seal.snapshot, "--vault", vault, *opening)
    diskprep("vault", "prune", "--vault", vault, *opening)
    restic(vault, lacking.password_file, "prune")
    restic(vault, lacking.password_file, "check", "--read-data")


def test_no_cleanup_goes_by_an_earlier_certificate_of_a_job_that_was_given_up(lacking: Trip) -> None:
    for file in lacking.seal.data_packs:
        lacking.vault.write(file.name, [DirectoryStore(lacking.staging.repository).read(file.name)])
    lacking.deliver()
    proven = lacking.ingest()
    assert "has its certificate" in give_up(lacking, "--confirm", JOB, code=42)[1]
    (lacking.folder / "vault" / lacking.seal.data_packs[0].name).unlink()
    opening = ("--vault", lacking.folder / "vault", "--passphrase-file", lacking.password_file)
    diskprep("vault", "check", *opening, code=30)
    give_up(lacking, "--confirm", JOB)
    assert held(lacking) == []
    with pytest.raises(CleanupRefused):
        cleanup.plan(lacking.staging, lacking.seal, proven, container=None, vault=lacking.vault)


def test_of_several_jobs_one_is_named_and_all_its_holds_end_and_no_other(lacking: Trip) -> None:
    directory = LockDirectory(lacking.vault, lacking.opened.key)
    write_hold(directory, JOB, HOLD_LIFETIME_S - 86400)
    write_hold(directory, "another-job")
    assert "several jobs" in give_up(lacking, "--confirm", JOB, code=2)[1]
    assert "is not held for nobody" in give_up(lacking, "--job", "nobody", "--confirm", "nobody", code=10)[1]
    give_up(lacking, "--job", JOB, "--confirm", JOB)
    assert held(lacking) == ["another-job"]


def test_an_expired_hold_is_ended_too(lacking: Trip) -> None:
    for hold in lacking.open().find_holds():
        hold.release()
    write_hold(LockDirectory(lacking.vault, lacking.opened.key), JOB, -86400.0)
    assert (
        "give-up"
        in diskprep(
            *("vault", "prune", "--vault", lacking.folder / "vault", "--passphrase-file", lacking.password_file),
            code=11,
        )[1]
    )
    give_up(lacking, "--confirm", JOB)
    assert held(lacking) == []


@pytest.mark.parametrize("typed", [JOB, "yes"])
def test_at_a_terminal_the_name_is_typed(lacking: Trip, typed: str) -> None:
    child, terminal = pty.fork()
    if not child:
        command = ["-m", "diskprep", "vault", "give-up", str(lacking.staging.root), "--vault"]
        command += [str(lacking.folder / "vault"), "--passphrase-file", str(lacking.password_file)]
        os.execv(sys.executable, [sys.executable, *command])
    seen = b""
    while b"type the job's name" not in seen:
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 4096)
    os.write(terminal, typed.encode() + b"\n")
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    assert b"packs missing" in seen
    assert (code, held(lacking)) == ((0, []) if typed == JOB else (2, [JOB]))
