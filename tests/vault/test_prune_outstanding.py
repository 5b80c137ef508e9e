"""Prune and forget wait for the cleanup that a certificate allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from vaults import History, assert_whole, listing, new_history

from diskprep.errors import CleanupRefused, DataDamaged
from diskprep.repository import lock as locks
from diskprep.repository.repository import Repository
from diskprep.store.directory import DirectoryStore
from diskprep.vault.certificate import Certificate, save
from diskprep.vault.forget import Wish, forget
from diskprep.vault.outstanding import GIVEN_UP, outstanding, settle
from diskprep.vault.prune import prune
from diskprep.vault.retention import KeepPolicy


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture
def history(tmp_path: Path) -> History:
    (tmp_path / "vault").mkdir()
    return new_history(DirectoryStore(tmp_path / "vault"), tmp_path / "source", points=4)


@pytest.fixture
def vault(history: History) -> Repository:
    return history.repository


def certified(vault: Repository, job_name: str = "job-1") -> Certificate:
    certificate = Certificate(
        job_name=job_name,
        repository_id=vault.id,
        seal_digest="0" * 64,
        snapshots=(vault.snapshots()[0].id,),
        vault=vault.store.location,
        created="2026-01-01T00:00:00Z",
        method="none",
        files=0,
        files_bytes=0,
        files_digest="0" * 64,
        data_packs=0,
        data_bytes=0,
    )
    save(certificate, vault.store, None)  # type: ignore[arg-type,unused-ignore]
    return certificate


def test_prune_and_forget_wait_until_the_cleanup_is_settled(history: History, vault: Repository) -> None:
    forget(vault, Wish(ids=(vault.snapshots()[1].id,)))
    certificate = certified(vault)
    first = certificate.snapshots[0]
    before = listing(vault.store)
    with pytest.raises(CleanupRefused, match="job-1 is outstanding"):
        prune(vault)
    assert listing(vault.store) == before
    assert prune(vault, dry_run=True).unneeded > 0
    with pytest.raises(CleanupRefused, match="job-1"):
        forget(vault, Wish(ids=(first,)))
    plan = forget(vault, Wish(policy=KeepPolicy(last=1)))
    assert len(plan.removed) == 1
    assert [kept.reasons for kept in plan.kept if kept.point.id == first] == [
        ("certified for job job-1, which is not cleaned up yet",)
    ]
    settle(vault.store, certificate)
    assert outstanding(vault.store) == {}
    assert prune(vault).unneeded > 0
    forget(vault, Wish(ids=(first,)))
    assert_whole(history, vault, points=[vault.snapshots()[-1].id])


def test_a_cleanup_is_given_up_by_name_only_and_for_this_certificate_only(vault: Repository) -> None:
    certified(vault)
    vault.store.write("x-seed/certificate-job-2.json", [b"no certificate"])
    assert set(outstanding(vault.store)) == {"job-1", "job-2"}
    with pytest.raises(DataDamaged, match="job-2"):
        forget(vault, Wish(policy=KeepPolicy(last=1)))
    forget(vault, Wish(policy=KeepPolicy(last=1)), before_cleanup=True)
    assert set(outstanding(vault.store)) == {"job-2"}
    assert GIVEN_UP.encode() in vault.store.read("x-seed/settled-job-1.json")
    prune(vault, before_cleanup=True)
    certified(vault)  # by another ingestion
    assert "job-1" in outstanding(vault.store)
