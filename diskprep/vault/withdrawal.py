"""Withdrawal: a certificate that does not hold any more leaves the vault, so that no cleanup goes by it.

Whoever finds that a vault is not whole withdraws. A certificate does not name the packs that it covers, so all of them
go whose cleanup is not done: one too many costs an ingestion, one too few the only other copy. Certificates of cleanups
that are done stay; there is nothing left to delete by them.

Write order: the hold, where the cleanup is outstanding; then the certificate goes; then the hold is looked for again,
since whoever renews it while the certificate is still there releases it. A certificate that cannot be deleted, because
the storage may only be read, is told in words: it must not be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diskprep.errors import DiskprepError
from diskprep.repository.repository import Repository
from diskprep.vault import certificate as certificates
from diskprep.vault.outstanding import not_cleaned_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What became of the certificate of a job. `held`: the vault is held for the job again; `problem`: why the
    certificate is still there, or why the vault is not held; empty when all was done."""

    job_name: str
    gone: bool
    held: bool
    problem: str = ""

    @property
    def words(self) -> str:
        if not self.gone:
            return (
                f"the certificate of {self.job_name} does not hold any more and should be withdrawn, but could not be "
                f"({self.problem}): clean up nothing by it"
            )
        told = f"the certificate of {self.job_name} does not hold any more: it is withdrawn"
        if self.held:
            return f"{told}, and the vault is held until it is ingested again"
        return f"{told}; the vault could not be held ({self.problem})" if self.problem else told


def withdraw_unsettled(repository: Repository) -> tuple[Withdrawal, ...]:
    """Withdraw every certificate of the vault whose cleanup is not done. Never raises for what the store refuses: the
    caller has found damage, and has that to tell."""
    try:
        found = not_cleaned_up(repository.store)
    except DiskprepError as error:
        return (Withdrawal(job_name="any job", gone=False, held=False, problem=error.message),)
    return tuple(_withdraw(repository, job_name, waits=waits) for job_name, waits in sorted(found.items()))


def withdraw(repository: Repository, job_name: str) -> Withdrawal | None:
    """Withdraw the certificate of a job, whatever became of its cleanup; None where it has none."""
    if repository.store.stat(certificates.object_name(job_name)) is None:
        return None
    return _withdraw(repository, job_name, waits=not_cleaned_up(repository.store).get(job_name, False))


def documents(done: Sequence[Withdrawal]) -> list[dict[str, Any]]:
    """Withdrawals for --json."""
    return [asdict(each) for each in done]


def _withdraw(repository: Repository, job_name: str, *, waits: bool) -> Withdrawal:
    if waits:
        _hold(repository, job_name)
    try:
        repository.store.delete(certificates.object_name(job_name))
    except DiskprepError as error:
        return Withdrawal(job_name=job_name, gone=False, held=False, problem=error.message)
    problem = _hold(repository, job_name) if waits else ""
    return Withdrawal(job_name=job_name, gone=True, held=waits and not problem, problem=problem)


def _hold(repository: Repository, job_name: str) -> str:
    """Hold the vault for the job; why that cannot be, or nothing."""
    try:
        if not any(hold.label == job_name for hold in repository.find_holds()):
            repository.hold(job_name)
    except DiskprepError as error:
        return error.message
    return ""
