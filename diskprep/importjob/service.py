"""The Import/Export service as this program sees it; the one behind Azure's Python client is in `client`.

Obligations of an ImportService: every call may be repeated, and a call whose answer was lost was made once; answers
hold no secrets; trouble that passes is waited out, with a bound; errors are NotSignedIn (the credential is refused),
NotFound (no such job or location), JobConflict (the service's rules forbid it) and ServiceError (anything else, a
silent service included). Nothing in it is the client's, so that another service may stand behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from diskprep.importjob.model import Job, JobRequest, Location, Package, ReturnAddress, ReturnShipping
from diskprep.secrets import Secret


class ImportService(Protocol):
    """The calls that jobs need; see the module for the errors."""

    def create(self, request: JobRequest) -> Job:
        """Create the job, or bring an existing one that is still Creating to what `request` says."""

    def get(self, name: str) -> Job: ...

    def list(self) -> tuple[Job, ...]:
        """All jobs of the subscription; of the resource group alone where the role does not reach further."""

    def ship(
        self,
        name: str,
        package: Package,
        *,
        return_address: ReturnAddress | None = None,
        return_shipping: ReturnShipping | None = None,
    ) -> Job:
        """Tell that the package is on its way: Creating becomes Shipping."""

    def cancel(self, name: str) -> Job:
        """Ask for the job to be cancelled; the answer shows what came of it."""

    def delete(self, name: str) -> None: ...

    def recovery_passwords(self, name: str) -> Mapping[str, Secret[str]]:
        """The recovery passwords the job was created with, by drive id."""

    def locations(self) -> tuple[Location, ...]: ...

    def location(self, name: str) -> Location: ...

    def keep_alive(self, name: str) -> Job:
        """Update the job without a change: while it is Creating, its two weeks start again."""

    def server_time(self) -> datetime:
        """The service's time (UTC), carried forward from its last answer; before that this computer's."""
