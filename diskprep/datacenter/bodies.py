"""What a client may send about a job, checked. Pure; every complaint is a Refusal.

Source: the service's REST reference, and what recorded requests were answered with (mode `wire`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from diskprep.datacenter import locations
from diskprep.datacenter.refusal import Refusal
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME

DRIVES_LIMIT = 10
DIAGNOSTICS = "waimportexport"
_TAGS_LIMIT = 50
_TAG_NAME_LIMIT, _TAG_VALUE_LIMIT = 512, 256
_TEXT_LIMIT = 1024
_KEY = re.compile(r"[0-9]{6}(-[0-9]{6}){7}")
_HASH = re.compile(r"[0-9A-Fa-f]{32}")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_ADDRESS = ("recipientName", "streetAddress1", "city", "postalCode", "countryOrRegion", "phone", "email")
_ADDRESS_ALL = (
    "recipientName",
    "streetAddress1",
    "streetAddress2",
    "city",
    "stateOrProvince",
    "postalCode",
    "countryOrRegion",
    "phone",
    "email",
)
_ENCRYPTION_KEY = ("kekType", "kekUrl", "kekVaultResourceID")
_IDENTITIES = ("None", "SystemAssigned", "UserAssigned")


class Mode(StrEnum):
    """How much is asked of a client."""

    STRICT = "strict"  # the published rules: a carrier that serves the region, the number of drives, a state by name
    WIRE = "wire"  # what real services were recorded to take: any carrier, no drives in the package, an empty state


def check_job_name(name: str) -> None:
    if not _JOB_NAME.fullmatch(name):
        raise Refusal("InvalidJobName", "the job's name is not allowed", target="name")


def location_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The location that a new job names."""
    found = locations.find(text(body, "location"))
    if found is None:
        raise Refusal(
            "LocationNotAvailableForResourceType", "the location is not one of the service's", target="location"
        )
    return found


def account_of(given: Mapping[str, Any]) -> str:
    account = text(given, "storageAccountId")
    if "/storageaccounts/" not in account.lower():
        raise Refusal(
            "InvalidStorageAccount", "storageAccountId does not name a storage account", target="storageAccountId"
        )
    return account


def drives(value: Any) -> tuple[list[dict[str, Any]], dict[str, Secret[str]]]:
    """A driveList as kept, and its keys. When several drives are wrong, all are told."""
    if not isinstance(value, list) or not value:
        raise Refusal("MissingProperty", "driveList is missing or empty", target="driveList")
    if len(value) > DRIVES_LIMIT:
        raise Refusal("TooManyDrives", f"a job takes at most {DRIVES_LIMIT} drives", target="driveList")
    kept: list[dict[str, Any]] = []
    keys: dict[str, Secret[str]] = {}
    wrong: list[Refusal] = []
    for number, given in enumerate(value):
        try:
            drive, key = _drive(given, f"driveList[{number}]")
            if drive["driveId"] in keys:
                raise Refusal(
                    "DuplicateDrive", f"drive {drive['driveId']!a} is listed twice", target=f"driveList[{number}]"
                )
            keys[drive["driveId"]] = key
            kept.append(drive)
        except Refusal as refusal:
            wrong.append(refusal)
    if wrong:
        message = wrong[0].message if len(wrong) == 1 else f"{len(wrong)} drives are wrong: {wrong[0].message}"
        raise Refusal(wrong[0].code, message, target=wrong[0].target, details=wrong)
    return kept, keys


def _drive(given: Any, place: str) -> tuple[dict[str, Any], Secret[str]]:
    if not isinstance(given, dict):
        raise Refusal("InvalidRequestContent", "a drive is not an object", target=place)
    drive_id, manifest_file = text(given, "driveId", place), text(given, "manifestFile", place)

    def wrong(field: str, code: str, message: str) -> Refusal:
        return Refusal(code, f"the {message} of drive {drive_id!a} is malformed", target=f"{place}.{field}")

    key, manifest_hash = text(given, "bitLockerKey", place), text(given, "manifestHash", place)
    if not _KEY.fullmatch(key):
        raise wrong("bitLockerKey", "InvalidBitLockerKey", "BitLocker key")
    if not _HASH.fullmatch(manifest_hash):
        raise wrong("manifestHash", "InvalidManifestHash", "manifest hash")
    if not manifest_file.startswith("\\"):
        raise wrong("manifestFile", "InvalidManifestFile", "manifest file, a path from the root,")
    drive: dict[str, Any] = {"driveId": drive_id, "manifestFile": manifest_file, "manifestHash": manifest_hash}
    if isinstance(given.get("driveHeaderHash"), str):
        drive["driveHeaderHash"] = given["driveHeaderHash"][:_TEXT_LIMIT]
    return {**drive, "state": "Specified"}, Secret(key)


def addresses(given: Mapping[str, Any]) -> dict[str, Any]:
    """returnAddress and returnShipping, as far as given; an address without a second line gets an empty one."""
    found: dict[str, Any] = {}
    if given.get("returnAddress") is not None:
        address = obj(given, "returnAddress")
        for field in _ADDRESS:
            text(address, field, "returnAddress")
        found["returnAddress"] = {
            field: optional(address, field)
            for field in _ADDRESS_ALL
            if address.get(field) is not None or field == "streetAddress2"
        }
    if given.get("returnShipping") is not None:
        shipping = obj(given, "returnShipping")
        found["returnShipping"] = {
            field: text(shipping, field, "returnShipping") for field in ("carrierName", "carrierAccountNumber")
        }
    return found


def package(
    value: Any, mode: Mode, *, location: str, drive_count: int, tracking_in_use: Collection[str]
) -> dict[str, Any]:
    """A deliveryPackage as kept: shipDate stays away when it was not given."""
    if not isinstance(value, dict):
        raise Refusal("InvalidRequestContent", "deliveryPackage is not an object", target="deliveryPackage")
    kept: dict[str, Any] = {field: text(value, field, "deliveryPackage") for field in ("carrierName", "trackingNumber")}
    if kept["trackingNumber"].lower() in tracking_in_use:
        raise Refusal(
            "DuplicateTrackingNumber",
            "the tracking number belongs to another job",
            409,
            target="deliveryPackage.trackingNumber",
        )
    count = value.get("driveCount")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= DRIVES_LIMIT):
        raise Refusal("InvalidDriveCount", "driveCount is not a number of drives", target="deliveryPackage.driveCount")
    if mode is Mode.STRICT:
        served = {carrier.lower() for carrier in locations.carriers(location)}
        if kept["carrierName"].lower() not in served:
            raise Refusal(
                "InvalidCarrier",
                f"the carrier does not serve {location}; those who do: {', '.join(locations.carriers(location))}",
                target="deliveryPackage.carrierName",
            )
        if count is not None and count != drive_count:
            raise Refusal(
                "InvalidDriveCount",
                f"the package holds {count} drives, the job has {drive_count}",
                target="deliveryPackage.driveCount",
            )
    kept["driveCount"] = count or 0
    if value.get("shipDate") is not None:
        kept["shipDate"] = optional(value, "shipDate")
    return kept


def state(value: Any, mode: Mode) -> str:
    """The state that is asked for, "" for none."""
    if value is None or (value == "" and mode is Mode.WIRE):
        return ""
    if value != "Shipping":
        raise Refusal("InvalidState", "state, if given, must be Shipping", target="state")
    return "Shipping"


def diagnostics(value: Any) -> str:
    path = DIAGNOSTICS if value in (None, "") else value
    if (
        not isinstance(path, str)
        or not path.isprintable()
        or len(path) > _TEXT_LIMIT
        or not CONTAINER_NAME.fullmatch(path.partition("/")[0])
    ):
        raise Refusal(
            "InvalidDiagnosticsPath", "diagnosticsPath does not begin with a container's name", target="diagnosticsPath"
        )
    return path


def log_level(value: Any) -> str:
    if value not in ("Error", "Verbose"):
        raise Refusal("InvalidLogLevel", "logLevel is Error or Verbose", target="logLevel")
    return str(value)


def truth(given: Mapping[str, Any], field: str) -> bool:
    value = given.get(field)
    if value is not None and not isinstance(value, bool):
        raise Refusal("InvalidRequestContent", f"{field} is neither true nor false", target=field)
    return bool(value)


def tags(value: Any) -> dict[str, str]:
    fine = (
        isinstance(value, dict)
        and len(value) <= _TAGS_LIMIT
        and all(0 < len(name) <= _TAG_NAME_LIMIT for name in value)
        and all(isinstance(content, str) and len(content) <= _TAG_VALUE_LIMIT for content in value.values())
    )
    if not fine:
        raise Refusal("InvalidTags", "tags are texts by name, and not many or long ones", target="tags")
    return dict(value)


def encryption_key(value: Any) -> dict[str, str]:
    """Whose key the service wraps the recovery passwords with: its own unless the customer names one."""
    if value is None:
        return {"kekType": "MicrosoftManaged"}
    given = obj({"encryptionKey": value}, "encryptionKey")
    kept = {field: text(given, field, "encryptionKey") for field in _ENCRYPTION_KEY if given.get(field) is not None}
    if kept.setdefault("kekType", "MicrosoftManaged") not in ("MicrosoftManaged", "CustomerManaged"):
        raise Refusal("InvalidEncryptionKey", "kekType is MicrosoftManaged or CustomerManaged", target="encryptionKey")
    if kept["kekType"] == "CustomerManaged":
        for field in _ENCRYPTION_KEY[1:]:
            text(kept, field, "encryptionKey")
    return kept


def identity(value: Any) -> dict[str, str]:
    if value is None:
        return {"type": "None"}
    kind = text(obj({"identity": value}, "identity"), "type", "identity")
    if kind not in _IDENTITIES:
        raise Refusal("InvalidIdentity", f"an identity's type is one of {', '.join(_IDENTITIES)}", target="identity")
    return {"type": kind}


def obj(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = body.get(field)
    if not isinstance(value, dict):
        raise Refusal("MissingProperty", f"{field} is missing or not an object", target=field)
    return value


def text(body: Mapping[str, Any], field: str, place: str = "") -> str:
    """A text that must be there, is on one line and is not long."""
    return _text(body, field, place, empty=False)


def optional(body: Mapping[str, Any], field: str, place: str = "") -> str:
    """As `text`, and "" where there is none."""
    return "" if body.get(field) is None else _text(body, field, place, empty=True)


def _text(body: Mapping[str, Any], field: str, place: str, *, empty: bool) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not (value or empty) or len(value) > _TEXT_LIMIT or not value.isprintable():
        target = f"{place}.{field}" if place else field
        raise Refusal("MissingProperty", f"{target} is missing or not a text", target=target)
    return value
