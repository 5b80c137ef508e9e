"""The Import/Export service behind its Python client, which this module loads; `service` says what a service is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from diskprep.errors import DiskprepError, ServiceError, UsageError
from diskprep.importjob import translate
from diskprep.importjob.asking import Line, Patience
from diskprep.importjob.model import Job, JobRequest, JobState, Location, Package, ReturnAddress, ReturnShipping
from diskprep.importjob.signin import LOOPBACK, PUBLIC_URL, TokenSource, fixed
from diskprep.secrets import Secret

_PAGES_LIMIT = 1000
_CONFLICTS = (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED)
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}


class AzureImportService:
    """The service behind its ARM interface, at `base_url` (None: public Azure; http is accepted for loopback alone).

    `retries`: how often trouble that passes is waited out; `patience` has the other bounds. One thread may use it.
    """

    def __init__(
        self,
        base_url: str | None,
        token: Secret[str] | TokenSource,
        subscription_id: str,
        resource_group: str,
        *,
        retries: int | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._url = (base_url or PUBLIC_URL).rstrip("/")
        self._group = resource_group
        host = urlsplit(self._url)
        local = host.hostname in LOOPBACK
        if host.path or host.query or host.fragment or "@" in host.netloc:  # every job would seem to be gone
            raise UsageError(f"the management endpoint at {host.hostname} is given with more than its host and port")
        if host.scheme != "https" and not (host.scheme == "http" and local):
            raise UsageError(f"{self._url} is not an https address: the token would travel in clear")
        patience = patience or Patience()
        if retries is not None:
            patience = replace(patience, repeats=retries)
        source = fixed(token) if isinstance(token, Secret) else token
        self._line = Line(self._url, source, subscription_id, patience, local=local)
        self._client = self._line.client

    def create(self, request: JobRequest) -> Job:
        body = translate.put_parameters(request)
        wanted = {(drive.drive_id, drive.manifest_file, drive.manifest_hash.upper()) for drive in request.drives}

        def is_it(job: Job) -> bool:
            theirs = {(drive.drive_id, drive.manifest_file, drive.manifest_hash.upper()) for drive in job.drives}
            return theirs == wanted and job.storage_account_id.lower() == request.storage_account_id.lower()

        return self._line.ask(
            f"create import job {request.name}",
            lambda headers: translate.job(
                self._client.jobs.create(request.name, self._group, body, custom_headers=headers)
            ),
            lambda status, maybe_done: self._done_before(request.name, status, maybe_done, is_it),
        )

    def get(self, name: str) -> Job:
        return self._line.ask(
            f"look at import job {name}",
            lambda headers: translate.job(self._client.jobs.get(name, self._group, custom_headers=headers)),
        )

    def list(self) -> tuple[Job, ...]:
        jobs = self._client.jobs

        def of_group() -> tuple[Job, ...]:
            return self._line.ask(
                "list the import jobs of the resource group",
                lambda headers: self._all(jobs.list_by_resource_group(self._group, custom_headers=headers)),
            )

        return self._line.ask(
            "list the import jobs",
            lambda headers: self._all(jobs.list_by_subscription(custom_headers=headers)),
            lambda status, _: of_group() if status in _REFUSED else None,
        )

    def ship(
        self,
        name: str,
        package: Package,
        *,
        return_address: ReturnAddress | None = None,
        return_shipping: ReturnShipping | None = None,
    ) -> Job:
        def is_so(job: Job) -> bool:
            theirs = job.package
            return (
                job.state != JobState.CREATING
                and theirs is not None
                and theirs.tracking_number.lower() == package.tracking_number.lower()
                and theirs.carrier.lower() == package.carrier.lower()
            )

        body = translate.ship_parameters(package, return_address, return_shipping)
        return self._update(f"enter the tracking number of import job {name}", name, body, is_so)

    def cancel(self, name: str) -> Job:
        body = translate.cancel_parameters()
        return self._update(f"cancel import job {name}", name, body, lambda job: job.cancel_requested)

    def keep_alive(self, name: str) -> Job:
        body = translate.same_parameters(self.get(name))
        return self._update(f"keep import job {name} alive", name, body)

    def delete(self, name: str) -> None:
        def ask(headers: dict[str, str]) -> bool:
            self._client.jobs.delete(name, self._group, custom_headers=headers)
            return True

        self._line.ask(
            f"delete import job {name}",
            ask,
            lambda status, maybe_done: True if status == HTTPStatus.NOT_FOUND and maybe_done else None,
        )

    def recovery_passwords(self, name: str) -> Mapping[str, Secret[str]]:
        def ask(headers: dict[str, str]) -> Mapping[str, Secret[str]]:
            keys = self._client.bit_locker_keys.list(name, self._group, custom_headers=headers)
            return {
                translate.text(key.drive_id): Secret(translate.text(key.bit_locker_key)) for key in keys.advance_page()
            }

        return self._line.ask(f"compare the recovery passwords of import job {name}", ask)

    def locations(self) -> tuple[Location, ...]:
        return self._line.ask(
            "list the datacenters",
            lambda headers: tuple(
                translate.location(item) for item in self._client.locations.list(custom_headers=headers).advance_page()
            ),
        )

    def location(self, name: str) -> Location:
        return self._line.ask(
            f"look up the datacenter {name}",
            lambda headers: translate.location(self._client.locations.get(name, custom_headers=headers)),
        )

    def server_time(self) -> datetime:
        return self._line.server_time()

    def _update(self, doing: str, name: str, body: Any, is_so: Callable[[Job], bool] | None = None) -> Job:
        """`is_so` tells whether a job is as the update wants it: it may have been made, and its answer lost."""
        return self._line.ask(
            doing,
            lambda headers: translate.job(self._client.jobs.update(name, self._group, body, custom_headers=headers)),
            lambda status, maybe_done: self._done_before(name, status, maybe_done, is_so) if is_so else None,
        )

    def _done_before(self, name: str, status: int, maybe_done: bool, is_it: Callable[[Job], bool]) -> Job | None:
        """The job when a conflict comes from our own earlier attempt; None when the conflict is real."""
        if not maybe_done or status not in _CONFLICTS:
            return None
        try:
            job = self.get(name)
        except DiskprepError:
            return None
        return job if is_it(job) else None

    def _all(self, pages: Any) -> tuple[Job, ...]:
        jobs: list[Job] = []
        for _ in range(_PAGES_LIMIT):
            jobs.extend(translate.job(job) for job in pages.advance_page())
            if not pages.next_link:
                return tuple(jobs)
            if not self._is_ours(pages.next_link):
                raise ServiceError("the service's list of jobs goes on at another host; it was not asked")
        raise ServiceError(f"the service's list of jobs has more than {_PAGES_LIMIT} pages")

    def _is_ours(self, link: str) -> bool:
        """Whether a link leads to the host that has our token anyway."""

        def place(url: str) -> str:
            parts = urlsplit(url)
            return f"{parts.scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS.get(parts.scheme, ' '))}"

        try:
            return place(link) == place(self._url)
        except ValueError:
            return False
