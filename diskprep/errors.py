"""Errors: one class, one exit code, one row of docs/reference/exit-codes.md.

Every error says what happened (`message`) and what to do next (`hint`). Nothing but these, and KeyboardInterrupt,
leaves a package of diskprep: OSError and the errors of libraries are translated at the package's border.
"""

from __future__ import annotations

from typing import ClassVar


class DiskprepError(Exception):
    """Base of all errors a user may see. `hint` names the next sensible step and may be empty."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DiskprepError):
    """The command line or a configuration value is wrong."""

    exit_code = 2


class SourceIncomplete(DiskprepError):
    """Everything that could be read is stored; some source entries could not be read, or changed while they were."""

    exit_code = 3


class StorageFull(DiskprepError):
    """A directory or disk has too little free space."""

    exit_code = 4


class StorageUnavailable(DiskprepError):
    """A directory, share or container cannot be read or written."""

    exit_code = 5


class NotFound(DiskprepError):
    """A repository, staging, snapshot, disk or job that was named does not exist."""

    exit_code = 10


class Locked(DiskprepError):
    """Somebody else holds the lock."""

    exit_code = 11


class WrongPassphrase(DiskprepError):
    """No key of the repository opens with this passphrase."""

    exit_code = 12


class FormatTooNew(DiskprepError):
    """A file was written by a newer version; it was not touched."""

    exit_code = 13


class DiskRefused(DiskprepError):
    """A disk must not be erased, or is not the disk that was confirmed."""

    exit_code = 20


class ReadBackFailed(DiskprepError):
    """What was read back from a disk is not what was written."""

    exit_code = 22


class DiskFailed(DiskprepError):
    """A disk returned an error or went away while it was written or read."""

    exit_code = 23


class DisksInsufficient(DiskprepError):
    """The disks given cannot hold the seed; the message says how much is missing."""

    exit_code = 24


class DataDamaged(DiskprepError):
    """Stored data is damaged, forged or not in the expected format."""

    exit_code = 30


class JournalDamaged(DiskprepError):
    """A disk's journal is damaged before its last acknowledged record."""

    exit_code = 31


class NotSignedIn(DiskprepError):
    """The service refuses the credential."""

    exit_code = 40


class ServiceError(DiskprepError):
    """The Import/Export service answered with an error or not at all."""

    exit_code = 41


class JobConflict(DiskprepError):
    """The import job does not allow this now, or contradicts what is recorded."""

    exit_code = 42


class DeadlineNear(DiskprepError):
    """The import job has no tracking number, and the service deletes it within days, or has done so."""

    exit_code = 43


class DrivesFailed(DiskprepError):
    """A drive did not arrive, or the import job ended and not everything that was shipped is in the container."""

    exit_code = 44


class IngestIncomplete(DiskprepError):
    """Packs are missing or damaged in the container; the message names the disks they were on."""

    exit_code = 50


class CleanupRefused(DiskprepError):
    """Nothing was deleted: no certificate covers it."""

    exit_code = 51


class ToolMissing(DiskprepError):
    """A program or library of the operating system is missing; the hint says how to get it."""

    exit_code = 60


class NotBuilt(DiskprepError):
    """This version of diskprep does not have that part yet."""

    exit_code = 61


class RestoreDiffers(DiskprepError):
    """A restored tree is not what the source was."""

    exit_code = 70


class Interrupted(DiskprepError):
    """Stopped by the user; the same command goes on."""

    exit_code = 130
