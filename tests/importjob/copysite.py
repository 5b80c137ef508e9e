"""A copy computer: a staging, its ledger, and the service; and the end of a process at a chosen line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from diskprep.importjob import job as jobs
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.ledger import Entry, Ledger, key_of
from diskprep.importjob.model import Drive, Job, ReturnAddress
from diskprep.importjob.saved import SavedJob
from diskprep.seed import Seed, Staging


class Crash(BaseException):
    """The process is killed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A copy computer with a staging, its ledger, and the service."""

    service: AzureImportService
    place: Staging
    seed: Seed
    drives: list[Drive]
    ledger: Ledger
    address: ReturnAddress

    def create(self, drives: Sequence[Drive] | None = None) -> Job:
        return jobs.create_job(self.service, self.place, self.seed, drives or self.drives, ledger=self.ledger)

    def ship(
        self,
        tracking_number: str = "JD0001",
        count: int = 2,
        serials: Sequence[str] | None = None,
        ship_date: date = date(2026, 3, 2),
    ) -> Job:
        return jobs.enter_shipping(
            self.service,
            self.place,
            carrier="DHL",
            tracking_number=tracking_number,
            drive_count=count,
            ship_date=ship_date,
            return_address=self.address,
            serials=serials,
            ledger=self.ledger,
        )

    def refresh(self) -> Job:
        return jobs.refresh_job(self.service, self.place, ledger=self.ledger)

    @property
    def saved(self) -> SavedJob:
        return jobs.load_job(self.place)

    @property
    def entry(self) -> Entry:
        return self.ledger.jobs()[str(key_of(self.seed))]
