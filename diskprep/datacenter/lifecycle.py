"""A job's life at the service: what may be asked of it, what happens to it, when it expires. Pure.

    Creating -> Shipping -> Received -> Transferring -> Packaging -> Completed (no error) | Closed (any error)

Source: the service's published state descriptions and REST reference; answers are shaped as recorded ones are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from diskprep import clock
from diskprep.datacenter import locations
from diskprep.errors import JobConflict
from diskprep.exchange.copylog import DriveStatus
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME

CREATING_EXPIRES = timedelta(days=14)
SHIPPING_LATE = timedelta(days=14)
SHIPPING_CLOSES = timedelta(days=30)
KEPT_AFTER_END = timedelta(days=90)
DRIVES_LIMIT = 10
DIAGNOSTICS = "waimportexport"
_ENDED = ("Completed", "Closed")
_CANCELLABLE = ("Creating", "Shipping", "Received", "Transferring")
_KEY = re.compile(r"[0-9]{6}(-[0-9]{6}){7}")
_HASH = re.compile(r"[0-9A-Fa-f]{32}")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_UPDATABLE = (
    "cancelRequested",
    "state",
    "returnAddress",
    "returnShipping",
    "deliveryPackage",
    "logLevel",
    "backupDriveManifest",
    "driveList",
)
_ADDRESS = ("recipientName", "streetAddress1", "city", "postalCode", "countryOrRegion", "phone", "email")
_SHIPPING_INFORMATION = (
    "recipientName",
    "streetAddress1",
    "streetAddress2",
    "city",
    "stateOrProvince",
    "postalCode",
    "countryOrRegion",
    "phone",
)


class Refusal(JobConflict):
    """The service says no: an HTTP status and a code beside the message."""

    default_status: ClassVar[int] = 400

    def __init__(self, code: str, message: str, status: int = default_status) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job as kept: the resource as answered, the keys apart from it, and when its present clock started."""

    subscription: str
    group: str
    resource: dict[str, Any]
    keys: Mapping[str, Secret[str]]
    touched: datetime

    @property
    def name(self) -> str:
        return str(self.resource["name"])

    @property
    def properties(self) -> dict[str, Any]:
        return self.resource["properties"]  # type: ignore[no-any-return]

    @property
    def state(self) -> str:
        return str(self.properties["state"])

    def drive(self, drive_id: str) -> dict[str, Any] | None:
        return next((drive for drive in self.properties["driveList"] if drive["driveId"] == drive_id), None)


def create(subscription: str, group: str, name: str, body: Mapping[str, Any], now: datetime) -> StoredJob:
    """A new job from the body of a PUT. Raises Refusal."""
    if not _JOB_NAME.fullmatch(name):
        raise Refusal("InvalidJobName", "the job's name is not allowed")
    given = _object(body, "properties")
    location = locations.find(_string(body, "location"))
    if location is None:
        raise Refusal("LocationNotAvailableForResourceType", "the location is not one of the service's")
    if given.get("jobType", "Import") != "Import":
        raise Refusal("UnsupportedJobType", "this stand-in handles import jobs only")
    account = _string(given, "storageAccountId")
    if "/storageaccounts/" not in account.lower():
        raise Refusal("InvalidStorageAccount", "storageAccountId does not name a storage account")
    drives, keys = _drives(given.get("driveList"))
    properties: dict[str, Any] = {
        "storageAccountId": account,
        "jobType": "Import",
        **_addresses(given),
        "shippingInformation": {field: location["properties"][field] for field in _SHIPPING_INFORMATION},
        "diagnosticsPath": _diagnostics(given.get("diagnosticsPath")),
        "logLevel": _log_level(given.get("logLevel", "Error")),
        "backupDriveManifest": bool(given.get("backupDriveManifest", False)),
        "state": "Creating",
        "cancelRequested": False,
        "driveList": drives,
        "provisioningState": "Succeeded",
        "encryptionKey": {"kekType": "MicrosoftManaged"},
    }
    resource = {
        "id": f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ImportExport/jobs/{name}",
        "name": name,
        "type": "Microsoft.ImportExport/jobs",
        "location": _string(body, "location"),
        "tags": body.get("tags") or {},
        "identity": {"type": "None"},
        "properties": properties,
    }
    return StoredJob(subscription=subscription, group=group, resource=resource, keys=keys, touched=now)


def put_again(job: StoredJob, body: Mapping[str, Any], now: datetime) -> StoredJob:
    """A PUT on an existing job: allowed while it is Creating, and starts its two weeks anew."""
    if job.state != "Creating":
        raise Refusal("JobStateConflict", f"the job is {job.state} and cannot be replaced", 409)
    return create(job.subscription, job.group, job.name, body, now)


def update(job: StoredJob, body: Mapping[str, Any], now: datetime, tracking_in_use: Collection[str]) -> StoredJob:
    """The body of a PATCH applied. In Creating every update starts the two weeks anew. Raises Refusal."""
    given = _object(body, "properties") if body.get("properties") is not None else {}
    if unknown := sorted(set(given) - set(_UPDATABLE)):
        raise Refusal("PropertyNotUpdatable", f"these properties cannot be updated: {', '.join(unknown)[:200]}")
    new = deepcopy(job.resource)
    properties, keys = new["properties"], job.keys
    if job.state in _ENDED:
        raise Refusal("JobStateConflict", f"the job is {job.state}", 409)
    if body.get("tags") is not None:
        new["tags"] = body["tags"]
    properties.update(_addresses(given))
    if "logLevel" in given:
        properties["logLevel"] = _log_level(given["logLevel"])
    if "backupDriveManifest" in given:
        properties["backupDriveManifest"] = bool(given["backupDriveManifest"])
    if given.get("driveList") is not None:
        if job.state != "Creating":
            raise Refusal("JobStateConflict", "the drives of a job that was shipped cannot be changed", 409)
        properties["driveList"], keys = _drives(given["driveList"])
    if given.get("deliveryPackage") is not None:
        if job.state not in ("Creating", "Shipping"):
            raise Refusal("JobStateConflict", f"the job is {job.state}: its package has arrived", 409)
        properties["deliveryPackage"] = _package(given["deliveryPackage"], tracking_in_use)
    if given.get("cancelRequested") is not None:
        if given["cancelRequested"] is not True:
            raise Refusal("InvalidCancelRequest", "cancelRequested, if given, must be true")
        if job.state not in _CANCELLABLE:
            raise Refusal("JobCannotBeCanceled", f"the job is {job.state}", 409)
        properties["cancelRequested"] = True
    _ship(properties, given.get("state"))
    restarts = job.state == "Creating"
    return replace(job, resource=new, keys=keys, touched=now if restarts else job.touched)


def check_deletable(job: StoredJob) -> None:
    if job.state not in ("Creating", *_ENDED):
        raise Refusal("JobCannotBeDeleted", f"the job is {job.state}; only Creating or ended jobs are deleted", 409)


def age(job: StoredJob, now: datetime) -> StoredJob | None:
    """What time alone has made of a job: the same value when nothing, None when it is deleted."""
    waited = now - job.touched
    if job.state in _ENDED:
        return job if waited <= KEPT_AFTER_END else None
    if job.properties["cancelRequested"] and job.state in ("Creating", "Shipping", "Received"):
        return _moved(job, "Completed", now)
    if job.state == "Creating":
        return job if waited <= CREATING_EXPIRES else None
    if job.state == "Shipping" and waited > SHIPPING_LATE:
        late = (
            job
            if _has_only(job, "NeverReceived")
            else _with_drives(
                job, {drive["driveId"]: {"state": "NeverReceived"} for drive in job.properties["driveList"]}
            )
        )
        return _moved(late, "Closed", now) if waited > SHIPPING_CLOSES else late
    return job


def receive(job: StoredJob, serials: Collection[str], now: datetime) -> StoredJob:
    """The package was opened. Its job's drives are Received, absent ones NeverReceived until they turn up."""
    if job.state not in ("Shipping", "Received"):
        raise Refusal("JobStateConflict", f"the job is {job.state}: no package is expected", 409)
    arrived = {}
    for drive in job.properties["driveList"]:
        if drive["driveId"] in serials:
            arrived[drive["driveId"]] = {"state": "Received"}
        elif drive["state"] == "Specified":
            arrived[drive["driveId"]] = {"state": "NeverReceived"}
    job = _with_drives(job, arrived)
    return _moved(job, "Received", now) if _has_only(job, "Received") else job


def start_drive(job: StoredJob, drive_id: str, now: datetime) -> StoredJob:
    job = _with_drives(job, {drive_id: {"state": "Transferring", "copyStatus": "InProgress", "percentComplete": 0}})
    return _with_percentage(_moved(job, "Transferring", now))


def progress(job: StoredJob, drive_id: str, percent: int) -> StoredJob:
    return _with_percentage(_with_drives(job, {drive_id: {"percentComplete": percent}}))


def finish_drive(
    job: StoredJob, drive_id: str, status: DriveStatus, bytes_succeeded: int, uris: Mapping[str, str]
) -> StoredJob:
    """A drive is through. `uris`: verboseLogUri, errorLogUri, manifestUri, as far as they exist."""
    state = "Completed" if status == DriveStatus.COMPLETED else "CompletedMoreInfo"
    fields = {
        "state": state,
        "copyStatus": str(status),
        "percentComplete": 100,
        "bytesSucceeded": bytes_succeeded,
        **uris,
    }
    return _with_percentage(_with_drives(job, {drive_id: fields}))


def pack(job: StoredJob, now: datetime) -> StoredJob:
    """All drives that came are through."""
    return _moved(job, "Packaging", now)


def ship_back(job: StoredJob, carrier: str, tracking_number: str, now: datetime) -> StoredJob:
    """The drives leave; the job ends: Closed when anything failed or is missing, Completed else or when cancelled."""
    if job.state != "Packaging":
        raise Refusal("JobStateConflict", f"the job is {job.state}: its drives are not packed", 409)
    drives = job.properties["driveList"]
    fine = (DriveStatus.COMPLETED, DriveStatus.COMPLETED_WITH_WARNINGS)
    returned = {drive["driveId"]: {"state": "ShippedBack"} for drive in drives if drive["state"] != "NeverReceived"}
    good = job.properties["cancelRequested"] or all(drive.get("copyStatus") in fine for drive in drives)
    job = _moved(_with_drives(job, returned), "Completed" if good else "Closed", now)
    job.properties["returnPackage"] = {
        "carrierName": carrier,
        "trackingNumber": tracking_number,
        "driveCount": len(returned),
        "shipDate": clock.rfc3339(now),
    }
    return job


def _moved(job: StoredJob, state: str, now: datetime) -> StoredJob:
    new = deepcopy(job.resource)
    new["properties"]["state"] = state
    return replace(job, resource=new, touched=now)


def _with_drives(job: StoredJob, fields: Mapping[str, Mapping[str, Any]]) -> StoredJob:
    new = deepcopy(job.resource)
    for drive in new["properties"]["driveList"]:
        drive.update(fields.get(drive["driveId"], {}))
    return replace(job, resource=new)


def _with_percentage(job: StoredJob) -> StoredJob:
    drives = [drive for drive in job.properties["driveList"] if drive["state"] != "NeverReceived"]
    job.properties["percentComplete"] = sum(drive.get("percentComplete", 0) for drive in drives) // max(1, len(drives))
    return job


def _has_only(job: StoredJob, state: str) -> bool:
    return all(drive["state"] == state for drive in job.properties["driveList"])


def _ship(properties: dict[str, Any], state: Any) -> None:
    if state in (None, ""):
        return
    if state != "Shipping":
        raise Refusal("InvalidState", "state, if given, must be Shipping")
    if properties["state"] not in ("Creating", "Shipping"):
        raise Refusal("JobStateConflict", f"the job is {properties['state']}", 409)
    for needed, code in (("returnAddress", "MissingReturnAddress"), ("deliveryPackage", "MissingDeliveryPackage")):
        if needed not in properties:
            raise Refusal(code, f"{needed} must be set before the job is shipped")
    properties["state"] = "Shipping"


def _drives(value: Any) -> tuple[list[dict[str, Any]], dict[str, Secret[str]]]:
    if not isinstance(value, list) or not value:
        raise Refusal("MissingProperty", "driveList is missing or empty")
    if len(value) > DRIVES_LIMIT:
        raise Refusal("TooManyDrives", f"a job takes at most {DRIVES_LIMIT} drives")
    drives: list[dict[str, Any]] = []
    keys: dict[str, Secret[str]] = {}
    for given in value:
        if not isinstance(given, dict):
            raise Refusal("InvalidRequestContent", "a drive is not an object")
        drive_id, manifest_file = _string(given, "driveId"), _string(given, "manifestFile")
        if drive_id in keys:
            raise Refusal("DuplicateDrive", f"drive {drive_id!a} is listed twice")
        if not _KEY.fullmatch(_string(given, "bitLockerKey")):
            raise Refusal("InvalidBitLockerKey", f"the BitLocker key of drive {drive_id!a} is malformed")
        if not _HASH.fullmatch(_string(given, "manifestHash")):
            raise Refusal("InvalidManifestHash", f"the manifest hash of drive {drive_id!a} is malformed")
        if not manifest_file.startswith("\\"):
            raise Refusal("InvalidManifestFile", f"the manifest file of drive {drive_id!a} is not a path from the root")
        keys[drive_id] = Secret(given["bitLockerKey"])
        drive = {"driveId": drive_id, "manifestFile": manifest_file, "manifestHash": given["manifestHash"]}
        if "driveHeaderHash" in given:
            drive["driveHeaderHash"] = str(given["driveHeaderHash"])
        drives.append({**drive, "state": "Specified"})
    return drives, keys


def _addresses(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given.get("returnAddress") is not None:
        address = _object(given, "returnAddress")
        for field in _ADDRESS:
            _string(address, field)
        second_line = {"streetAddress2": str(address.get("streetAddress2") or "")}
        found["returnAddress"] = {
            **second_line,
            **{key: str(value) for key, value in address.items() if value is not None},
        }
    if given.get("returnShipping") is not None:
        shipping = _object(given, "returnShipping")
        found["returnShipping"] = {field: _string(shipping, field) for field in ("carrierName", "carrierAccountNumber")}
    return found


def _package(value: Any, tracking_in_use: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal("InvalidRequestContent", "deliveryPackage is not an object")
    package = {field: _string(value, field) for field in ("carrierName", "trackingNumber")}
    if package["trackingNumber"].lower() in tracking_in_use:
        raise Refusal("DuplicateTrackingNumber", "the tracking number belongs to another job", 409)
    count = value.get("driveCount", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= DRIVES_LIMIT:
        raise Refusal("InvalidDriveCount", "driveCount is not a number of drives")
    return {**package, "driveCount": count, "shipDate": str(value.get("shipDate") or "")[:64]}


def _diagnostics(value: Any) -> str:
    path = str(value or DIAGNOSTICS)
    if not CONTAINER_NAME.fullmatch(path.partition("/")[0]):
        raise Refusal("InvalidDiagnosticsPath", "diagnosticsPath does not begin with a container's name")
    return path


def _log_level(value: Any) -> str:
    if value not in ("Error", "Verbose"):
        raise Refusal("InvalidLogLevel", "logLevel is Error or Verbose")
    return str(value)


def _object(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = body.get(field)
    if not isinstance(value, dict):
        raise Refusal("MissingProperty", f"{field} is missing or not an object")
    return value


def _string(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value or len(value) > 1024 or not value.isprintable():
        raise Refusal("MissingProperty", f"{field} is missing or not a text")
    return value
