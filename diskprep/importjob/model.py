"""Values of an import job, as the service has it and without its secrets.

Invariant: a recovery password is in `Drive` alone, wrapped; what comes back from the service (`Job`, `DriveStatus`)
holds none. States the service may add are kept as text, shown, and never crash anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TypeVar

from diskprep.secrets import Secret

DRIVES_LIMIT = 10


class JobState(StrEnum):
    """Where a job is. The service writes exactly these words."""

    CREATING = "Creating"
    SHIPPING = "Shipping"
    RECEIVED = "Received"
    TRANSFERRING = "Transferring"
    PACKAGING = "Packaging"
    COMPLETED = "Completed"
    CLOSED = "Closed"
    FAULTED = "Faulted"


class DriveState(StrEnum):
    """Where a drive is."""

    SPECIFIED = "Specified"
    RECEIVED = "Received"
    NEVER_RECEIVED = "NeverReceived"
    TRANSFERRING = "Transferring"
    COMPLETED = "Completed"
    COMPLETED_MORE_INFO = "CompletedMoreInfo"
    SHIPPED_BACK = "ShippedBack"


class LogLevel(StrEnum):
    """What the copy logs hold: failures only, or everything."""

    ERROR = "Error"
    VERBOSE = "Verbose"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A prepared disk as the job needs it. `manifest_file` begins with a back-slash, `manifest_hash` is MD5 in hex.

    `opened`: the finished disk was opened with exactly this recovery password and read back.
    """

    drive_id: str
    recovery_password: Secret[str]
    manifest_file: str
    manifest_hash: str
    opened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveStatus:
    """What the service says about a drive. Log locations are URIs and empty until there are logs."""

    drive_id: str
    manifest_file: str = ""
    manifest_hash: str = ""
    state: DriveState | str = DriveState.SPECIFIED
    copy_status: str = ""
    percent_complete: int = 0
    bytes_succeeded: int = 0
    verbose_log_uri: str = ""
    error_log_uri: str = ""
    manifest_uri: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A postal address. The service knows one line for the recipient; in some countries it holds instructions."""

    recipient_name: str
    street_address1: str
    street_address2: str = ""
    city: str
    state_or_province: str = ""
    postal_code: str
    country_or_region: str
    phone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnAddress:
    """Where drives come back to. The service insists on all but the second line and the province."""

    recipient_name: str
    street_address1: str
    street_address2: str = ""
    city: str
    state_or_province: str = ""
    postal_code: str
    country_or_region: str
    phone: str
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnShipping:
    """Who carries drives back, on whose account."""

    carrier: str
    account_number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package on its way. `ship_date` is None when the service's text is not a date."""

    carrier: str
    tracking_number: str
    drive_count: int = 0
    ship_date: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An import job. `percent_complete` is 0 until copying starts; `resource_group` is empty when it is not known."""

    name: str
    location: str
    storage_account_id: str
    state: JobState | str
    drives: tuple[DriveStatus, ...]
    shipping_address: Address | None = None
    return_address: ReturnAddress | None = None
    return_shipping: ReturnShipping | None = None
    package: Package | None = None
    return_package: Package | None = None
    percent_complete: int = 0
    diagnostics_path: str = ""
    log_level: LogLevel | str = LogLevel.ERROR
    backup_drive_manifest: bool = False
    cancel_requested: bool = False
    resource_group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """All that a new job is created from."""

    name: str
    location: str
    storage_account_id: str
    drives: tuple[Drive, ...]
    return_address: ReturnAddress | None = None
    return_shipping: ReturnShipping | None = None
    diagnostics_path: str = "waimportexport"
    log_level: LogLevel = LogLevel.VERBOSE
    backup_drive_manifest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A region of the service: where packages go, by whom, and the regions to use instead (`alternates`, as names)."""

    name: str
    display_name: str
    address: Address
    carriers: tuple[str, ...]
    alternates: tuple[str, ...]


_Closed = TypeVar("_Closed", bound=StrEnum)


def known(members: type[_Closed], text: str) -> _Closed | str:
    """`text` as a member, or as it is when the service has learnt a new word."""
    try:
        return members(text)
    except ValueError:
        return text
