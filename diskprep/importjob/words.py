"""Words: what each published status means to a person, and what to do about it. Tables, no I/O.

Statuses are those of the copy logs, the job's drives, and of the Data Box era. A status that is not known is shown as
the service wrote it. Sources: "Import/Export service log file format", "View the status of Azure Import/Export jobs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diskprep.exchange.copylog import BlobStatus, BlockStatus, DispositionStatus, DriveStatus, FileStatus
from diskprep.exchange.databoxlog import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """`says` completes "the drive ..." or "the file ..."; `todo` is a sentence, empty when there is nothing to do."""

    says: str
    todo: str = ""


_AGAIN = "Send what was on it again, with this disk or another."
_ELSEWHERE = "Send what was on it again, with another disk."
_VERIFY = "When the disk is back, run `diskprep disk verify` on it: it tells whether the disk or its way is at fault."
_RESEND = "It is sent again with the repair."
_KEPT = "Nothing: a pack is named by its content, and ingestion reads every one."

DRIVES: Mapping[str, Words] = {
    DriveStatus.COMPLETED: Words(says="was copied whole"),
    DriveStatus.COMPLETED_WITH_WARNINGS: Words(says="was copied; some files were there already or were renamed"),
    DriveStatus.COMPLETED_WITH_ERRORS: Words(says="was copied in part: some files failed"),
    DriveStatus.DISK_NOT_FOUND: Words(
        says="did not answer when it was attached", todo=f"The disk is dead or its connector is bent. {_ELSEWHERE}"
    ),
    DriveStatus.VOLUME_NOT_NTFS: Words(says="has no NTFS volume", todo=f"It was changed after it was sealed. {_AGAIN}"),
    DriveStatus.DISK_OPERATION_FAILED: Words(
        says="failed while it was read", todo=f"Do not use it again. {_ELSEWHERE}"
    ),
    DriveStatus.BITLOCKER_VOLUME_NOT_FOUND: Words(
        says="has no BitLocker volume where the datacenter looked for one", todo=f"{_VERIFY} {_AGAIN}"
    ),
    DriveStatus.BITLOCKER_NOT_ACTIVATED: Words(
        says="is not encrypted any more", todo=f"Somebody turned BitLocker off. {_AGAIN}"
    ),
    DriveStatus.BITLOCKER_PROTECTOR_NOT_FOUND: Words(
        says="has no recovery password", todo=f"It was changed after it was sealed. {_AGAIN}"
    ),
    DriveStatus.BITLOCKER_KEY_INVALID: Words(
        says="does not open with the job's recovery password",
        todo=f"Another disk carries this serial number, or it was prepared again after the job was created. {_AGAIN}",
    ),
    DriveStatus.BITLOCKER_UNLOCK_VOLUME_FAILED: Words(says="could not be unlocked", todo=f"{_VERIFY} {_AGAIN}"),
    DriveStatus.BITLOCKER_FAILED: Words(says="made BitLocker fail", todo=f"{_VERIFY} {_AGAIN}"),
    DriveStatus.MANIFEST_NAME_INVALID: Words(says="has a manifest under a name that is not allowed", todo=_AGAIN),
    DriveStatus.MANIFEST_NAME_TOO_LONG: Words(says="has a manifest under too long a name", todo=_AGAIN),
    DriveStatus.MANIFEST_NOT_FOUND: Words(says="has no manifest where the job says", todo=f"{_VERIFY} {_AGAIN}"),
    DriveStatus.MANIFEST_ACCESS_DENIED: Words(says="has a manifest that may not be read", todo=f"{_VERIFY} {_AGAIN}"),
    DriveStatus.MANIFEST_CORRUPTED: Words(
        says="has another manifest than the job was created with",
        todo=f"It was changed, or prepared again, after the job was created. {_VERIFY} {_AGAIN}",
    ),
    DriveStatus.MANIFEST_FORMAT_INVALID: Words(
        says="has a manifest that the datacenter does not understand", todo=f"Tell Azure support. {_AGAIN}"
    ),
    DriveStatus.MANIFEST_DRIVE_ID_MISMATCH: Words(
        says="has another serial number than its manifest says",
        todo=f"It was prepared behind a bridge that hides the serial. Prepare it at a SATA port. {_AGAIN}",
    ),
    DriveStatus.READ_MANIFEST_FAILED: Words(says="has a manifest that could not be read", todo=f"{_VERIFY} {_AGAIN}"),
    DriveStatus.BLOB_LIST_FORMAT_INVALID: Words(says="has a list of blobs with mistakes", todo="Tell Azure support."),
    DriveStatus.BLOB_REQUEST_FORBIDDEN: Words(
        says="carries a signature that does not open the container",
        todo="The signature has expired, its key was rotated, or the container refuses the datacenter's network. "
        f"Make a new signature first. {_AGAIN}",
    ),
    DriveStatus.INTERNAL_ERROR: Words(says="met with a failure of the service", todo=f"Ask Azure support. {_AGAIN}"),
    # Of the Data Box era: statuses of its logs and orders, and the portal's labels.
    "Failed": Words(says="was copied in part, or not at all", todo=_AGAIN),
    "CompletedMoreInfo": Words(says="was read; the copy log tells more"),
    "NotStarted": Words(says="was not read yet"),
    "InProgress": Words(says="is being copied"),
    "NotReturned": Words(says="was not sent back", todo="Ask Azure support where it is."),
    "HardwareError": Words(says="has failing hardware", todo=f"Do not use it again. {_ELSEWHERE}"),
    "DeviceFormatted": Words(says="was formatted after it was sealed", todo=_AGAIN),
    "DeviceMetadataModified": Words(says="was changed after it was sealed", todo=_AGAIN),
    "MetadataFilesModifiedOrRemoved": Words(says="lacks files that it was sealed with", todo=f"{_VERIFY} {_AGAIN}"),
    "StorageAccountNotAccessible": Words(
        says="could not be copied: the storage account refused the datacenter",
        todo=f"Let trusted Microsoft services through the account's firewall first. {_AGAIN}",
    ),
    "UnsupportedData": Words(says="holds what the service does not import", todo="Ask Azure support what it was."),
    "DriveNotReceived": Words(says="never arrived in the datacenter", todo=f"Ask the carrier. {_AGAIN}"),
    "UnsupportedDrive": Words(says="is of a kind the service does not take", todo="Use a bare SATA disk instead."),
    "DriveNotDetected": Words(says="did not answer when it was attached", todo=f"Do not use it again. {_ELSEWHERE}"),
    "DriveCorrupted": Words(says="is damaged", todo=f"Do not use it again. {_ELSEWHERE}"),
    "OtherServiceError": Words(says="met with a failure of the service", todo=f"Ask Azure support. {_AGAIN}"),
    "OtherUserError": Words(says="was refused", todo=f"Ask Azure support why. {_AGAIN}"),
    "Disk not received at datacenter": Words(says="never arrived in the datacenter", todo=f"Ask the carrier. {_AGAIN}"),
    "Manifest file error": Words(says="has a manifest with a mistake", todo=f"{_VERIFY} {_AGAIN}"),
    "Blob access forbidden": Words(
        says="carries a signature that does not open the container", todo=f"Make a new signature first. {_AGAIN}"
    ),
    "Unsupported disk": Words(says="is of a kind the service does not take", todo="Use a bare SATA disk instead."),
    "Disk corrupted": Words(says="is damaged", todo=f"Do not use it again. {_ELSEWHERE}"),
    "BitLocker unlock volume failed": Words(says="could not be unlocked", todo=f"{_VERIFY} {_AGAIN}"),
    "BitLocker volume not found": Words(says="has no BitLocker volume", todo=f"{_VERIFY} {_AGAIN}"),
    "BitLocker key invalid": Words(says="does not open with the job's recovery password", todo=f"{_VERIFY} {_AGAIN}"),
    "Hardware error": Words(says="has failing hardware", todo=f"Do not use it again. {_ELSEWHERE}"),
    "NTFS volume not found": Words(says="has no NTFS volume", todo=f"{_VERIFY} {_AGAIN}"),
    "Storage account not accessible": Words(
        says="could not be copied: the storage account refused the datacenter",
        todo=f"Let trusted Microsoft services through the account's firewall first. {_AGAIN}",
    ),
    "Unsupported data": Words(says="holds what the service does not import", todo="Ask Azure support what it was."),
    "Export blob list format invalid": Words(says="belongs to an export job", todo="Ask Azure support."),
}

FILES: Mapping[str, Words] = {
    BlobStatus.COMPLETED: Words(says="arrived"),
    BlobStatus.COMPLETED_WITH_ERRORS: Words(says="did not arrive whole", todo=_RESEND),
    BlobStatus.FILE_NAME_INVALID: Words(says="has a name that is not allowed", todo=_RESEND),
    BlobStatus.FILE_NAME_TOO_LONG: Words(says="has too long a name", todo=_RESEND),
    BlobStatus.FILE_NOT_FOUND: Words(says="is not on the disk though its manifest names it", todo=_RESEND),
    BlobStatus.FILE_ACCESS_DENIED: Words(says="may not be read on the disk", todo=_RESEND),
    BlobStatus.BLOB_REQUEST_FAILED: Words(says="was refused by the storage account", todo=_RESEND),
    BlobStatus.BLOB_REQUEST_FORBIDDEN: Words(
        says="was refused: the signature does not open its container",
        todo="Make a new signature, then send it again with the repair.",
    ),
    BlobStatus.RENAME_FAILED: Words(says="found no free name in the container", todo=_RESEND),
    BlobStatus.BLOB_UNEXPECTED_CHANGE: Words(
        says="was changed in the container while it was copied", todo=f"Keep others out of it. {_RESEND}"
    ),
    BlobStatus.LEASE_PRESENT: Words(
        says="could not replace a blob that somebody holds a lease on", todo=f"Break the lease first. {_RESEND}"
    ),
    BlobStatus.IO_FAILED: Words(says="could not be read from the disk", todo=f"The disk is failing. {_RESEND}"),
    BlobStatus.FAILED: Words(says="failed, and the service does not say why", todo=_RESEND),
    # Of the logs of 2018-10-01 and 2021-08-01.
    "Corrupted": Words(says="is not what was sealed: its checksum differs", todo=_RESEND),
    "StorageRequestFailed": Words(says="was refused by the storage account", todo=_RESEND),
    Category.WIN32: Words(says="could not be read from the disk", todo=_RESEND),
    Category.CLOUD_HTTP: Words(says="was refused by the storage account", todo=_RESEND),
    Category.DATA_VALIDATION: Words(says="is not what was read: its checksum differs", todo=_RESEND),
    Category.FILE_PROPERTY: Words(says="has a time that cannot be kept", todo=_RESEND),
    Category.MANAGED_CONVERSION: Words(says="was taken for a disk image of the wrong size", todo="Ask Azure support."),
    Category.UNKNOWN: Words(says="failed, and the service does not say why", todo=_RESEND),
    Category.TRAILING_SLASH: Words(says="has a name that ends with a slash", todo="Ask Azure support."),
    Category.EXPORT_CLOUD_HTTP: Words(says="is of a kind that is not exported", todo="Ask Azure support."),
}

#: Files that are in the container, but not as one would expect.
TOLD: Mapping[str, Words] = {
    DispositionStatus.SKIPPED: Words(says="was there already and was left as it is", todo=_KEPT),
    DispositionStatus.RENAMED: Words(
        says="was there already; the disk's came under another name", todo="Ingestion uses the one that was there."
    ),
    DispositionStatus.CANCELLED: Words(says="was not written", todo="Ingestion tells whether it is missed."),
    "Extras": Words(says="arrived, but not its metadata or properties", todo="Nothing: ingestion does not need them."),
    Category.CONTAINER_RENAMED: Words(
        says="is a container that was given another name", todo="Ingest from the container with the new name."
    ),
    Category.SHARE_RENAMED: Words(says="is a file share that was given another name", todo="Look for it there."),
    Category.BLOB_RENAMED: Words(says="was given another name", todo="Ingestion tells whether it is missed."),
    Category.FILE_RENAMED: Words(says="was given another name", todo="Ingestion tells whether it is missed."),
    Category.DISK_RENAMED: Words(says="was taken for a disk image and renamed", todo="Ask Azure support."),
}

PARTS: Mapping[str, str] = {
    BlockStatus.COMPLETED: "arrived",
    BlockStatus.COMMITTED: "arrived",
    BlockStatus.UNCOMMITTED: "arrived, but wait for the others",
    BlockStatus.CORRUPTED: "are not what the manifest says",
    BlockStatus.FILE_UNEXPECTED_END: "lie behind the end of the file",
    BlockStatus.BLOB_UNEXPECTED_END: "lie behind the end of the blob",
    BlockStatus.BLOB_REQUEST_FAILED: "were refused by the storage account",
    BlockStatus.IO_FAILED: "could not be read from the disk",
    BlockStatus.FAILED: "failed",
    BlockStatus.CANCELLED: "were not tried",
}

SIDE_FILES: Mapping[str, str] = {
    FileStatus.COMPLETED: "arrived",
    FileStatus.FILE_NAME_INVALID: "has a name that is not allowed",
    FileStatus.FILE_NAME_TOO_LONG: "has too long a name",
    FileStatus.FILE_NOT_FOUND: "is not on the disk",
    FileStatus.FILE_ACCESS_DENIED: "may not be read",
    FileStatus.CORRUPTED: "is not what the manifest says",
    FileStatus.XML_READ_FAILED: "is not proper XML",
    FileStatus.XML_WRITE_FAILED: "could not be written",
    FileStatus.BLOB_REQUEST_FAILED: "was refused by the storage account",
    FileStatus.IO_FAILED: "could not be read from the disk",
    FileStatus.FAILED: "failed",
    FileStatus.CANCELLED: "was not tried",
}

_UNKNOWN_TODO = "This word of the service is not known here; ask Azure support what it means."


def of_drive(status: str) -> Words:
    """A drive's status in words."""
    return DRIVES.get(status) or Words(says=f"ended as {status!a}", todo=f"{_UNKNOWN_TODO} {_AGAIN}")


def of_file(status: str) -> Words:
    """A failed file's status in words."""
    return FILES.get(status) or Words(says=f"ended as {status!a}", todo=f"{_UNKNOWN_TODO} {_RESEND}")


def of_told(kind: str) -> Words:
    """A file that is there, but not as expected."""
    return TOLD.get(kind) or Words(says=f"ended as {kind!a}", todo=_UNKNOWN_TODO)


def of_parts(status: str) -> str:
    """What became of blocks or page ranges."""
    return PARTS.get(status) or f"ended as {status!a}"


def of_side_file(status: str) -> str:
    """What became of a metadata or properties file."""
    return SIDE_FILES.get(status) or f"ended as {status!a}"
