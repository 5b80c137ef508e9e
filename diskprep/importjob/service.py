"""The Import/Export service as this program sees it, and the one module that knows its Python client.

Obligations of an ImportService: calls are idempotent; answers hold no secrets; errors are NotSignedIn (the credential
is refused), NotFound (no such job or location), JobConflict (the service's rules forbid it) and ServiceError (anything
else, a silent service included).

The client's models show recovery passwords in their repr, and its errors may quote requests: neither leaves this
module.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from azure.core.exceptions import DeserializationError, SerializationError
from azure.mgmt.storageimportexport import StorageImportExport
from azure.mgmt.storageimportexport import models as sdk
from msrest.authentication import BasicTokenAuthentication
from msrest.exceptions import ClientException, HttpOperationError

from diskprep.errors import DiskprepError, JobConflict, NotBuilt, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.importjob.model import (
    Address,
    DriveState,
    DriveStatus,
    Job,
    JobRequest,
    JobState,
    Location,
    LogLevel,
    Package,
    ReturnAddress,
    ReturnShipping,
    known,
)
from diskprep.secrets import Secret

PUBLIC_URL = "https://management.azure.com"
TokenSource = Callable[[], Secret[str]]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PAGES_LIMIT = 1000
_TIMEOUT_S = 60
_RETRY_AFTER_LIMIT_S = 60
_MESSAGE_LIMIT_CHARS = 400
_PASSWORD = re.compile(r"[0-9]{6}(-[0-9]{6}){7}")
_Answer = TypeVar("_Answer")


class ImportService(Protocol):
    """The calls that jobs need; see the module for the errors."""

    def create(self, request: JobRequest) -> Job:
        """Create the job, or bring an existing one that is still Creating to what `request` says."""

    def get(self, name: str) -> Job: ...

    def list(self) -> tuple[Job, ...]:
        """All jobs of the resource group."""

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


def credential(token: Secret[str] | None) -> TokenSource:
    """Where the bearer token of each request comes from. Raises NotBuilt without one: signing in is not built yet."""
    if token is None:
        raise NotBuilt(
            "signing in to Azure is not built yet",
            hint="give a management token with --token-file, for example from `az account get-access-token`; "
            "or try everything locally with `diskprep rehearse`",
        )
    return lambda: token


class _Bearer(BasicTokenAuthentication):
    """Asks for the token at each request, so that a source that renews it is listened to."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__({"access_token": ""})
        self._source = source

    def signed_session(self, session: Any = None) -> Any:
        session = super().signed_session(session)
        session.headers["Authorization"] = f"Bearer {self._source().reveal()}"
        return session


class AzureImportService:
    """The service behind its ARM interface, at `base_url` (None: public Azure; http is accepted for loopback alone)."""

    def __init__(
        self,
        base_url: str | None,
        token: Secret[str] | TokenSource,
        subscription_id: str,
        resource_group: str,
        *,
        retries: int = 4,
    ) -> None:
        self._url = (base_url or PUBLIC_URL).rstrip("/")
        self._group = resource_group
        source = token if callable(token) else credential(token)
        host = urlsplit(self._url)
        local = host.hostname in _LOOPBACK
        if host.scheme != "https" and not (host.scheme == "http" and local):
            raise UsageError(f"{self._url} is not an https address: the token would travel in clear")
        self._client = StorageImportExport(_Bearer(source), subscription_id, base_url=self._url)
        config = self._client.config
        config.generate_client_request_id = False  # the client's own ids hold this computer's network address
        config.hooks.clear()  # would register the provider without asking, and wait for it without end
        config.proxies.use_env_settings = not local
        config.redirect_policy.allow = False
        config.connection.timeout = _TIMEOUT_S
        config.retry_policy.retries = retries
        policy = config.retry_policy.policy
        policy.allowed_methods = None  # every call here may be repeated; the client's own setting is lost on urllib3 2
        policy.status_forcelist = [*policy.status_forcelist, 429]
        policy.raise_on_status = False  # the last answer is worth more than "too many retries"
        policy.backoff_max = policy.retry_after_max = _RETRY_AFTER_LIMIT_S

    def create(self, request: JobRequest) -> Job:
        details = sdk.JobDetails(
            storage_account_id=request.storage_account_id,
            job_type="Import",
            return_address=_to_return_address(request.return_address),
            return_shipping=_to_return_shipping(request.return_shipping),
            diagnostics_path=request.diagnostics_path,
            log_level=str(request.log_level),
            backup_drive_manifest=request.backup_drive_manifest,
            drive_list=[
                sdk.DriveStatus(
                    drive_id=drive.drive_id,
                    bit_locker_key=drive.recovery_password.reveal(),
                    manifest_file=drive.manifest_file,
                    manifest_hash=drive.manifest_hash,
                    drive_header_hash="",  # its algorithm is not public; every published sample has it empty
                )
                for drive in request.drives
            ],
        )
        body = sdk.PutJobParameters(location=request.location, properties=details)
        return self._ask(
            f"create import job {request.name}",
            lambda headers: _job(self._client.jobs.create(request.name, self._group, body, custom_headers=headers)),
        )

    def get(self, name: str) -> Job:
        return self._ask(
            f"look at import job {name}",
            lambda headers: _job(self._client.jobs.get(name, self._group, custom_headers=headers)),
        )

    def list(self) -> tuple[Job, ...]:
        def all_pages(headers: dict[str, str]) -> tuple[Job, ...]:
            pages = self._client.jobs.list_by_resource_group(self._group, custom_headers=headers)
            jobs: list[Job] = []
            for _ in range(_PAGES_LIMIT):
                jobs.extend(_job(job) for job in pages.advance_page())
                if pages.next_link is None:
                    return tuple(jobs)
                if not pages.next_link.startswith(f"{self._url}/"):
                    raise ServiceError("the service's list of jobs goes on at another host; it was not asked")
            raise ServiceError(f"the service's list of jobs has more than {_PAGES_LIMIT} pages")

        return self._ask("list the import jobs", all_pages)

    def ship(
        self,
        name: str,
        package: Package,
        *,
        return_address: ReturnAddress | None = None,
        return_shipping: ReturnShipping | None = None,
    ) -> Job:
        body = sdk.UpdateJobParameters(
            state=str(JobState.SHIPPING),
            return_address=_to_return_address(return_address),
            return_shipping=_to_return_shipping(return_shipping),
            delivery_package=sdk.PackageInfomation(
                carrier_name=package.carrier,
                tracking_number=package.tracking_number,
                drive_count=package.drive_count,
                ship_date="" if package.ship_date is None else package.ship_date.isoformat(),
            ),
        )
        return self._update(f"enter the tracking number of import job {name}", name, body)

    def cancel(self, name: str) -> Job:
        return self._update(f"cancel import job {name}", name, sdk.UpdateJobParameters(cancel_requested=True))

    def delete(self, name: str) -> None:
        self._ask(
            f"delete import job {name}",
            lambda headers: self._client.jobs.delete(name, self._group, custom_headers=headers),
        )

    def recovery_passwords(self, name: str) -> Mapping[str, Secret[str]]:
        def ask(headers: dict[str, str]) -> Mapping[str, Secret[str]]:
            keys = self._client.bit_locker_keys.list(name, self._group, custom_headers=headers)
            return {_text(key.drive_id): Secret(_text(key.bit_locker_key)) for key in keys.advance_page()}

        return self._ask(f"compare the recovery passwords of import job {name}", ask)

    def locations(self) -> tuple[Location, ...]:
        return self._ask(
            "list the datacenters",
            lambda headers: tuple(
                _location(item) for item in self._client.locations.list(custom_headers=headers).advance_page()
            ),
        )

    def location(self, name: str) -> Location:
        return self._ask(
            f"look up the datacenter {name}",
            lambda headers: _location(self._client.locations.get(name, custom_headers=headers)),
        )

    def _update(self, doing: str, name: str, body: sdk.UpdateJobParameters) -> Job:
        return self._ask(
            doing, lambda headers: _job(self._client.jobs.update(name, self._group, body, custom_headers=headers))
        )

    def _ask(self, doing: str, call: Callable[[dict[str, str]], _Answer]) -> _Answer:
        """Make one call. Every failure becomes one of ours, unlinked from the original, which may quote secrets."""
        try:
            return call({"x-ms-client-request-id": str(uuid.uuid4())})
        except DiskprepError:
            raise
        except HttpOperationError as error:
            code = _text(getattr(error.error, "code", ""))
            failure = _refusal(doing, error.response.status_code, _reason(error), code)
        except ClientException:
            failure = ServiceError(
                f"cannot {doing}: no answer from {self._url}",
                hint="check the network, then give the same command again",
            )
        except (SerializationError, DeserializationError, AttributeError, TypeError, ValueError, KeyError, OSError):
            failure = ServiceError(f"cannot {doing}: the service's answer is not what it should be")
        raise failure


def _refusal(doing: str, status: int, reason: str, code: str) -> DiskprepError:
    message = f"cannot {doing}: {reason}"
    if status in (401, 403):
        return NotSignedIn(message, hint="sign in again; the role needs to create import jobs in the resource group")
    if code == "MissingSubscriptionRegistration":
        return ServiceError(message, hint="az provider register --namespace Microsoft.ImportExport")
    if status == 404:
        return NotFound(message)
    if status in (409, 412):
        return JobConflict(message, hint="`diskprep job show` tells where the job is")
    if status == 429 or status >= 500:
        return ServiceError(message, hint="the service is busy or in trouble; give the same command again later")
    return ServiceError(message)


def _reason(error: HttpOperationError) -> str:
    """What the service said, on one line, short, and safe for a terminal."""
    detail = error.error
    parts = [str(getattr(detail, name, None) or "") for name in ("code", "message")]
    text = ": ".join(part for part in parts if part) or "no reason given"
    text = _PASSWORD.sub("***", "".join(sign if sign.isprintable() else " " for sign in text))
    return f"{text[:_MESSAGE_LIMIT_CHARS]} (HTTP {error.response.status_code})"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _job(answer: Any) -> Job:
    details = answer.properties
    return Job(
        name=_text(answer.name),
        location=_text(answer.location),
        storage_account_id=_text(details.storage_account_id),
        state=known(JobState, _text(details.state)),
        drives=tuple(_drive(drive) for drive in details.drive_list or ()),
        shipping_address=_address(details.shipping_information),
        return_address=_return_address(details.return_address),
        return_shipping=_return_shipping(details.return_shipping),
        package=_package(details.delivery_package),
        return_package=_package(details.return_package),
        percent_complete=details.percent_complete or 0,
        diagnostics_path=_text(details.diagnostics_path),
        log_level=known(LogLevel, _text(details.log_level)),
        backup_drive_manifest=bool(details.backup_drive_manifest),
        cancel_requested=bool(details.cancel_requested),
    )


def _drive(drive: Any) -> DriveStatus:
    return DriveStatus(
        drive_id=_text(drive.drive_id),
        manifest_file=_text(drive.manifest_file),
        manifest_hash=_text(drive.manifest_hash),
        state=known(DriveState, _text(drive.state)),
        copy_status=_text(drive.copy_status),
        percent_complete=drive.percent_complete or 0,
        bytes_succeeded=drive.bytes_succeeded or 0,
        verbose_log_uri=_text(drive.verbose_log_uri),
        error_log_uri=_text(drive.error_log_uri),
        manifest_uri=_text(drive.manifest_uri),
    )


_ADDRESS = ("recipient_name", "street_address1", "street_address2", "city", "state_or_province", "postal_code")
_ADDRESS_ALL = (*_ADDRESS, "country_or_region", "phone")


def _address(model: Any) -> Address | None:
    return None if model is None else Address(**{name: _text(getattr(model, name)) for name in _ADDRESS_ALL})


def _return_address(model: Any) -> ReturnAddress | None:
    if model is None:
        return None
    return ReturnAddress(**{name: _text(getattr(model, name)) for name in (*_ADDRESS_ALL, "email")})


def _return_shipping(model: Any) -> ReturnShipping | None:
    if model is None:
        return None
    return ReturnShipping(carrier=_text(model.carrier_name), account_number=_text(model.carrier_account_number))


def _package(model: Any) -> Package | None:
    if model is None:
        return None
    try:
        ship_date = date.fromisoformat(_text(model.ship_date)[:10])
    except ValueError:
        ship_date = None
    return Package(
        carrier=_text(model.carrier_name),
        tracking_number=_text(model.tracking_number),
        drive_count=model.drive_count or 0,
        ship_date=ship_date,
    )


def _location(model: Any) -> Location:
    address = _address(model)
    assert address is not None, "a location is an address"
    return Location(
        name=_text(model.id).rpartition("/")[2],
        display_name=_text(model.name),
        address=address,
        carriers=tuple(_text(carrier) for carrier in model.supported_carriers or ()),
        alternates=tuple(_text(item).rpartition("/")[2] for item in model.alternate_locations or ()),
    )


def _to_return_address(address: ReturnAddress | None) -> Any:
    if address is None:
        return None
    return sdk.ReturnAddress(**{name: getattr(address, name) for name in (*_ADDRESS_ALL, "email")})


def _to_return_shipping(shipping: ReturnShipping | None) -> Any:
    if shipping is None:
        return None
    return sdk.ReturnShipping(carrier_name=shipping.carrier, carrier_account_number=shipping.account_number)
