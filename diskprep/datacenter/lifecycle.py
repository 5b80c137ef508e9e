"""A job's life at the service: what may be asked of it, what happens to it, when it expires. Pure.

    Creating -> Shipping -> Received -> Transferring -> Packaging -> Completed (no error) | Closed (any error)

Source: the service's published state descriptions and REST reference; answers are shaped as recorded ones are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from diskprep import clock
from diskprep.datacenter import bodies
from diskprep.datacenter.bodies import Mode
from diskprep.datacenter.refusal import Refusal
from diskprep.exchange.copylog import DriveStatus
from diskprep.secrets import Secret

CREATING_EXPIRES = timedelta(days=14)
SHIPPING_LATE = timedelta(days=14)
SHIPPING_CLOSES = timedelta(days=30)
KEPT_AFTER_END = timedelta(days=90)
DIAGNOSTICS = bodies.DIAGNOSTICS
_ENDED = ("Completed", "Closed")
_CANCELLABLE = ("Creating", "Shipping", "Received", "Transferring")
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
    bodies.check_job_name(name)
    given = bodies.obj(body, "properties")
    location = bodies.location_of(body)
    if given.get("jobType", "Import") != "Import":
        raise Refusal("UnsupportedJobType", "this stand-in handles import jobs only", target="jobType")
    account = bodies.account_of(given)
    drives, keys = bodies.drives(given.get("driveList"))
    properties: dict[str, Any] = {
        "storageAccountId": account,
        "jobType": "Import",
        **bodies.addresses(given),
        "shippingInformation": {field: location["properties"][field] for field in _SHIPPING_INFORMATION},
        "diagnosticsPath": bodies.diagnostics(given.get("diagnosticsPath")),
        "logLevel": bodies.log_level(given.get("logLevel", "Error")),
        "backupDriveManifest": bodies.truth(given, "backupDriveManifest"),
        "cancelRequested": False,
        "state": "Creating",
        "driveList": drives,
        "provisioningState": "Succeeded",
        "encryptionKey": bodies.encryption_key(given.get("encryptionKey")),
    }
    resource = {
        "properties": properties,
        "identity": bodies.identity(body.get("identity")),
        "id": f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ImportExport/jobs/{name}",
        "name": name,
        "type": "Microsoft.ImportExport/jobs",
        "location": bodies.text(body, "location"),
    }
    if body.get("tags"):
        resource["tags"] = bodies.tags(body["tags"])
    return StoredJob(subscription=subscription, group=group, resource=resource, keys=keys, touched=now)


def put_again(job: StoredJob, body: Mapping[str, Any], now: datetime) -> StoredJob:
    """A PUT on an existing job: allowed while it is Creating, and starts its two weeks anew."""
    if job.state != "Creating":
        raise Refusal("JobStateConflict", f"the job is {job.state} and cannot be replaced", 409)
    return create(job.subscription, job.group, job.name, body, now)


def update(
    job: StoredJob,
    body: Mapping[str, Any],
    now: datetime,
    tracking_in_use: Collection[str],
    mode: Mode = Mode.STRICT,
) -> StoredJob:
    """The body of a PATCH applied. In Creating every update starts the two weeks anew. Raises Refusal."""
    given = bodies.obj(body, "properties") if body.get("properties") is not None else {}
    if unknown := sorted(set(given) - set(_UPDATABLE)):
        raise Refusal("PropertyNotUpdatable", f"these properties cannot be updated: {', '.join(unknown)[:200]}")
    new = deepcopy(job.resource)
    properties, keys = new["properties"], job.keys
    if job.state in _ENDED:
        raise Refusal("JobStateConflict", f"the job is {job.state}", 409)
    if body.get("tags") is not None:
        new["tags"] = bodies.tags(body["tags"])
    properties.update(bodies.addresses(given))
    if given.get("logLevel") is not None:
        properties["logLevel"] = bodies.log_level(given["logLevel"])
    if given.get("backupDriveManifest") is not None:
        properties["backupDriveManifest"] = bodies.truth(given, "backupDriveManifest")
    if given.get("driveList") is not None:
        if job.state != "Creating":
            raise Refusal("JobStateConflict", "the drives of a job that was shipped cannot be changed", 409)
        properties["driveList"], keys = bodies.drives(given["driveList"])
    if given.get("deliveryPackage") is not None:
        if job.state not in ("Creating", "Shipping"):
            raise Refusal("JobStateConflict", f"the job is {job.state}: its package has arrived", 409)
        properties["deliveryPackage"] = bodies.package(
            given["deliveryPackage"],
            mode,
            location=str(new["location"]),
            drive_count=len(properties["driveList"]),
            tracking_in_use=tracking_in_use,
        )
    if given.get("cancelRequested") is not None:
        _cancel(properties, given["cancelRequested"])
    if bodies.state(given.get("state"), mode):
        _ship(properties)
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
        drives = job.properties["driveList"]
        if any(drive["state"] not in ("Specified", "NeverReceived") for drive in drives):
            return job  # a part of the package is here, and somebody is looking for the rest
        if not _has_only(job, "NeverReceived"):
            job = _with_drives(job, {drive["driveId"]: {"state": "NeverReceived"} for drive in drives})
        return _moved(job, "Closed", now) if waited > SHIPPING_CLOSES else job
    return job


def receive(job: StoredJob, serials: Collection[str], now: datetime) -> StoredJob:
    """A package was opened. Its job's drives are Received, absent ones NeverReceived until they turn up.

    A drive that is Received or further stays what it is, so that a package may be opened twice.
    """
    if job.state == "Creating":
        raise Refusal(
            "PackageNotExpected",
            f"a package came for import job {job.name}, which is Creating: nobody entered its tracking number, so the "
            "drives are put aside",
            409,
            hint="enter it (`diskprep job ship`), then receive the package again",
        )
    arrived = {}
    for drive in job.properties["driveList"]:
        if drive["driveId"] in serials and drive["state"] in ("Specified", "NeverReceived"):
            arrived[drive["driveId"]] = {"state": "Received"}
        elif drive["state"] == "Specified":
            arrived[drive["driveId"]] = {"state": "NeverReceived"}
    if job.state not in ("Shipping", "Received", "Transferring", "Faulted"):
        if not arrived:
            return job  # the same package once more
        reason = "which was cancelled" if job.properties["cancelRequested"] else f"which is {job.state} already"
        raise Refusal(
            "PackageNotExpected",
            f"a package came for import job {job.name}, {reason}: its drives go back unprocessed",
            409,
        )
    job = _with_drives(job, arrived)
    return _moved(job, "Received", now) if job.state == "Shipping" and _has_only(job, "Received") else job


def get_stuck(job: StoredJob, now: datetime) -> StoredJob:
    """Something is wrong that the operators must ask the customer about; reading goes on when it was settled."""
    if job.state not in ("Received", "Transferring"):
        raise Refusal("JobStateConflict", f"the job is {job.state}: nothing is being done with it", 409)
    return _moved(job, "Faulted", now)


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
    """The drives leave; the job ends: Closed when anything failed or is missing, Completed else or when cancelled.

    `carrier` "" is the one of the job's returnShipping.
    """
    if job.state != "Packaging":
        raise Refusal("JobStateConflict", f"the job is {job.state}: its drives are not packed", 409)
    drives = job.properties["driveList"]
    fine = (DriveStatus.COMPLETED, DriveStatus.COMPLETED_WITH_WARNINGS)
    returned = {drive["driveId"]: {"state": "ShippedBack"} for drive in drives if drive["state"] != "NeverReceived"}
    good = job.properties["cancelRequested"] or all(drive.get("copyStatus") in fine for drive in drives)
    job = _moved(_with_drives(job, returned), "Completed" if good else "Closed", now)
    job.properties["returnPackage"] = {
        "carrierName": carrier or job.properties.get("returnShipping", {}).get("carrierName", "DHL"),
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


def _cancel(properties: dict[str, Any], value: Any) -> None:
    if value is not True:
        raise Refusal("InvalidCancelRequest", "cancelRequested, if given, must be true", target="cancelRequested")
    if properties["state"] not in _CANCELLABLE:
        raise Refusal("JobCannotBeCanceled", f"the job is {properties['state']}", 409)
    properties["cancelRequested"] = True


def _ship(properties: dict[str, Any]) -> None:
    if properties["state"] not in ("Creating", "Shipping"):
        raise Refusal("JobStateConflict", f"the job is {properties['state']}", 409)
    for needed, code in (("returnAddress", "MissingReturnAddress"), ("deliveryPackage", "MissingDeliveryPackage")):
        if needed not in properties:
            raise Refusal(code, f"{needed} must be set before the job is shipped", target=needed)
    properties["state"] = "Shipping"
