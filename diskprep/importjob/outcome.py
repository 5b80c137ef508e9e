"""The outcome of a job: one report in human words, and what has to be sent again. Pure.

What the job says of a drive and what its copy log says are brought together; the log has the last word, for it is
written by who read the drive. A drive counts as arrived only when one of them says so: no news is no good news.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from diskprep.exchange.copylog import DriveStatus
from diskprep.exchange.logsummary import FileOutcome, LogSummary
from diskprep.importjob import states, words
from diskprep.importjob.model import DriveState, Job, JobState
from diskprep.importjob.model import DriveStatus as JobDrive

_SHOWN = 20
_NO_NEWS = ("", "InProgress", "NotStarted", "Transferring", "Specified", "Received")
_FIND_LOG = "Find its copy log: --log FILE reads it."
_IN_PART = (DriveStatus.COMPLETED_WITH_ERRORS, DriveState.COMPLETED_MORE_INFO)
_SO_FAR: Mapping[str, str] = {
    DriveState.SPECIFIED: "has not arrived in the datacenter yet",
    DriveState.RECEIVED: "is in the datacenter, and was not read yet",
    DriveState.TRANSFERRING: "is being copied",
}
_THROUGH = (DriveState.COMPLETED, DriveState.COMPLETED_MORE_INFO, DriveState.SHIPPED_BACK)


class Fate(StrEnum):
    """What became of a drive."""

    ARRIVED = "arrived"  # all of it is in the container
    IN_PART = "in part"  # it was read, and some files failed
    FAILED = "failed"  # it came, and nothing of it was read
    LOST = "lost"  # it never came
    WAITING = "waiting"  # it is not through yet


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file in words. `name` is the blob's, `path` the one on the drive, as the log has them, either may be empty.

    `status`: the service's word.
    """

    name: str
    path: str
    size_bytes: int
    status: str
    says: str
    todo: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveReport:
    """A drive in words.

    `failed`: the files that are not in the container, as far as they are known; `files_known`: these are all. `told`:
    files that are there, but not as expected; `told_counts`: how many of each kind.
    """

    serial: str
    fate: Fate
    state: str
    status: str
    says: str
    todo: str = ""
    files_known: bool = True
    failed: tuple[FileReport, ...] = ()
    unlisted: int = 0
    told: tuple[FileReport, ...] = ()
    told_counts: Mapping[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "serial": self.serial,
            "fate": str(self.fate),
            "state": self.state,
            "status": self.status,
            "says": self.says,
            "todo": self.todo,
            "files_known": self.files_known,
            "failed": [_file_document(file) for file in self.failed],
            "unlisted": self.unlisted,
            "told": [_file_document(file) for file in self.told],
            "told_counts": dict(self.told_counts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A job's outcome. `ended`: nothing changes any more. `notes`: what is to be known of the report itself."""

    job_name: str
    state: str
    ended: bool
    drives: tuple[DriveReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every drive arrived whole, as far as the service tells."""
        return all(drive.fate is Fate.ARRIVED for drive in self.drives)

    @property
    def troubled(self) -> tuple[DriveReport, ...]:
        """The drives that are through and did not arrive whole."""
        return tuple(drive for drive in self.drives if drive.fate not in (Fate.ARRIVED, Fate.WAITING))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "job": self.job_name,
            "state": self.state,
            "ended": self.ended,
            "complete": self.complete,
            "drives": [drive.document() for drive in self.drives],
            "notes": list(self.notes),
        }

    def lines(self, *, shown: int = _SHOWN) -> Iterator[str]:
        """For people, at most `shown` files of a kind and drive. What comes from the service is not escaped."""
        yield f"import job {self.job_name}: {self.state}"
        for drive in self.drives:
            yield f"drive {drive.serial} {drive.says}"
            if drive.todo:
                yield f"    {drive.todo}"
            yield from _file_lines(drive.failed, len(drive.failed) + drive.unlisted, shown)
            yield from _file_lines(drive.told, sum(drive.told_counts.values()), shown)
            if not drive.files_known:
                yield "    the copy log does not name all files that failed"
        yield from self.notes


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What has to be sent again.

    `packs`: object name -> why. `drives`: serial -> what became of it, of the drives that these packs were on. `disks`:
    those of which all packs are sent again. `waiting`: drives that are not through. `spared`: failed files that nobody
    misses: the index files that travel with the packs are in the vault already.
    """

    packs: Mapping[str, str]
    drives: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    spared: int = 0

    def without(self, packs: Collection[str], placement: Mapping[str, str]) -> RepairPlan:
        """The plan without these packs, which came otherwise. `placement`: object name of a pack -> serial."""
        left = {pack: why for pack, why in self.packs.items() if pack not in packs}
        serials = {placement[pack].lower() for pack in left}
        drives = {serial: says for serial, says in self.drives.items() if serial.lower() in serials}
        brought = {placement[pack].lower() for pack in self.packs if pack in packs}
        whole = tuple(serial for serial in self.disks if serial in drives and serial.lower() not in brought)
        return replace(self, packs=left, drives=drives, disks=whole)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "packs": dict(self.packs),
            "drives": dict(self.drives),
            "disks": list(self.disks),
            "waiting": list(self.waiting),
            "spared": self.spared,
        }


def report(
    job: Job, logs: Mapping[str, LogSummary], *, lost: Collection[str] = (), notes: Collection[str] = ()
) -> Report:
    """The outcome of a job, from what the service says and the copy logs of its drives (by serial).

    `lost`: serials that somebody knows to be lost, whatever the service says.
    """
    ended = not states.is_open(job)
    taken = {serial.lower() for serial in lost}
    drives = tuple(
        _drive(job, drive, logs.get(drive.drive_id), ended=ended, lost=drive.drive_id.lower() in taken)
        for drive in job.drives
    )
    return Report(job_name=job.name, state=str(job.state), ended=ended, drives=drives, notes=tuple(notes))


def serial_of(job: Job, log: LogSummary, file_name: str) -> str:
    """Whose log this is: by the drive id in it, else by its file's name, else the only drive's; "" when nobody's."""
    serials = [drive.drive_id for drive in job.drives]
    for serial in serials:
        if serial.lower() == log.drive_id.lower():
            return serial
    named = [serial for serial in serials if f"_{serial.lower()}_" in file_name.lower()]
    if len(named) == 1:
        return named[0]
    return serials[0] if len(serials) == 1 and not log.drive_id else ""


def plan_repair(
    outcome: Report,
    placement: Mapping[str, str],
    *,
    present: Collection[str] | None = None,
    same_disk: bool = False,
) -> RepairPlan:
    """What has to be sent again of the packs that `placement` (object name -> serial) put on the job's drives.

    Of a drive that came in part it is what failed; all of it when the log does not say, or with `same_disk`. Of one
    that failed or is lost it is all. `present`: the packs that are in the container with their size, when somebody
    looked; then these are spared, and what is missing of a drive that is said to have arrived is sent again too.
    """
    packs: dict[str, str] = {}
    drives: dict[str, str] = {}
    disks: list[str] = []
    spared = 0
    shares: dict[str, list[str]] = {}
    for pack, serial in placement.items():
        shares.setdefault(serial.lower(), []).append(pack)
    for drive in outcome.drives:
        share = shares.get(drive.serial.lower(), [])
        if drive.fate is Fate.WAITING:
            continue
        failed = _failed_packs(drive, placement)
        spared += sum(1 for file in drive.failed if _pack_of(file, placement) is None)
        wanted = _wanted(drive, share, failed, present, same_disk=same_disk)
        if wanted:
            packs |= {pack: failed.get(pack, f"drive {drive.serial} {drive.says}") for pack in wanted}
            if drive.fate is Fate.ARRIVED:
                packs |= dict.fromkeys(wanted, "it is not in the container, though its drive was copied")
            drives[drive.serial] = drive.says
            if len(wanted) == len(share):
                disks.append(drive.serial)
    return RepairPlan(
        packs=packs,
        drives=drives,
        disks=tuple(disks),
        waiting=tuple(drive.serial for drive in outcome.drives if drive.fate is Fate.WAITING),
        spared=spared,
    )


def _wanted(
    drive: DriveReport,
    share: Collection[str],
    failed: Mapping[str, str],
    present: Collection[str] | None,
    *,
    same_disk: bool,
) -> list[str]:
    if same_disk and drive.fate is not Fate.ARRIVED:
        return list(share)
    if present is not None:
        return [pack for pack in share if pack not in present]
    if drive.fate is Fate.ARRIVED:
        return []
    if drive.fate is Fate.IN_PART and drive.files_known:
        return [pack for pack in share if pack in failed]
    return list(share)


def _failed_packs(drive: DriveReport, placement: Mapping[str, str]) -> dict[str, str]:
    """Object names of the packs among a drive's failed files -> why."""
    found = {}
    for file in drive.failed:
        if (pack := _pack_of(file, placement)) is not None:
            found[pack] = "; ".join([file.says, *file.details])
    return found


def _pack_of(file: FileReport, placement: Mapping[str, str]) -> str | None:
    """The pack that a log's file is: its path without the volume's folder, or the container's name, before it."""
    for path in (file.path, file.name):
        parts = path.replace("\\", "/").strip("/").split("/")
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            if name in placement:
                return name
    return None


def _drive(job: Job, drive: JobDrive, log: LogSummary | None, *, ended: bool, lost: bool) -> DriveReport:
    status = log.status if log is not None and log.status else drive.copy_status
    fate, says, todo = _judge(job, drive, status, log, ended=ended, lost=lost)
    known = fate is not Fate.IN_PART or (log is not None and not log.unlisted and bool(log.failed or log.told))
    return DriveReport(
        serial=drive.drive_id,
        fate=fate,
        state=str(drive.state),
        status=status,
        says=says,
        todo=todo,
        files_known=known,
        failed=tuple(map(_failed_file, log.failed)) if log is not None else (),
        unlisted=log.unlisted if log is not None else 0,
        told=tuple(map(_told_file, log.told)) if log is not None else (),
        told_counts=dict(log.told_counts) if log is not None else {},
    )


def _judge(
    job: Job, drive: JobDrive, status: str, log: LogSummary | None, *, ended: bool, lost: bool
) -> tuple[Fate, str, str]:
    """What became of a drive, in words, and what to do."""
    if lost:
        return Fate.LOST, "is given up as lost", "Send what was on it again."
    if log is None and drive.state == DriveState.NEVER_RECEIVED:
        if ended:
            return Fate.LOST, "never arrived in the datacenter", "Ask the carrier, and send what was on it again."
        return Fate.WAITING, "was not in the package", "Ask the carrier; it may turn up. --lost SERIAL gives it up."
    if status in _NO_NEWS and not (log is not None and log.failed):
        return _without_news(job, drive, ended=ended)
    return _by_status(drive, status or DriveStatus.COMPLETED_WITH_ERRORS, log, ended=ended)


def _by_status(drive: JobDrive, status: str, log: LogSummary | None, *, ended: bool) -> tuple[Fate, str, str]:
    told = words.of_drive(status)
    troubled = log is not None and bool(log.failed or log.unlisted)
    fate = Fate.FAILED
    if status in (DriveStatus.COMPLETED, DriveStatus.COMPLETED_WITH_WARNINGS):
        fate = Fate.IN_PART if troubled else Fate.ARRIVED
        told = words.of_drive(DriveStatus.COMPLETED_WITH_ERRORS) if troubled else told
    elif status in _IN_PART or troubled or (log is not None and log.told):
        fate = Fate.IN_PART
    elif drive.state not in _THROUGH and not ended and log is None:
        return Fate.WAITING, f"is {drive.state}; so far it {told.says}", ""
    return fate, told.says, told.todo


def _without_news(job: Job, drive: JobDrive, *, ended: bool) -> tuple[Fate, str, str]:
    """A drive of which neither a log nor the copy status tells the end."""
    fine = drive.state == DriveState.SHIPPED_BACK and job.state == JobState.COMPLETED and not job.cancel_requested
    if drive.state == DriveState.COMPLETED or fine:
        return Fate.ARRIVED, words.of_drive(DriveStatus.COMPLETED).says, ""
    if drive.state == DriveState.COMPLETED_MORE_INFO:
        return Fate.IN_PART, "was read; the copy log tells more", _FIND_LOG
    if not ended:
        return Fate.WAITING, _SO_FAR.get(drive.state, f"is {drive.state}"), ""
    if job.cancel_requested:
        return Fate.FAILED, "was not copied: the job was cancelled", "Send what was on it again."
    if drive.state == DriveState.SPECIFIED:
        return Fate.LOST, "never arrived before the job ended", "Ask the carrier, and send what was on it again."
    return Fate.FAILED, "was not copied, as far as is known: there is no log of it", _FIND_LOG


def _failed_file(file: FileOutcome) -> FileReport:
    return _in_words(file, file.status, words.of_file(file.status))


def _told_file(file: FileOutcome) -> FileReport:
    kind = _kind(file)
    return _in_words(file, kind, words.of_told(kind))


def _in_words(file: FileOutcome, status: str, told: words.Words) -> FileReport:
    return FileReport(
        name=file.blob_path,
        path=file.file_path,
        size_bytes=file.length_bytes,
        status=status,
        says=told.says,
        todo=told.todo,
        details=tuple(_details(file)),
    )


def _kind(file: FileOutcome) -> str:
    """Why a file is told of."""
    if file.disposition in words.TOLD:
        return file.disposition
    return file.status if file.status in words.TOLD else "Extras"


def _details(file: FileOutcome) -> Iterator[str]:
    for status, count in file.parts:
        yield f"blocks that {words.of_parts(status)}: {count}"
    for what, status in (("metadata", file.metadata), ("properties", file.properties)):
        if status and status != "Completed":
            yield f"its {what} file {words.of_side_file(status)}"
    if file.message:
        yield f"the service says: {file.message}" + (f" ({file.code})" if file.code else "")


def _file_lines(files: tuple[FileReport, ...], count: int, shown: int) -> Iterator[str]:
    listed = files[:shown]
    for file in listed:
        yield f"    {file.name or file.path} {'; '.join([file.says, *file.details])}"
    if count > len(listed):
        yield f"    and {count - len(listed)} more"
    for todo in dict.fromkeys(file.todo for file in listed if file.todo):
        yield f"    {todo}"


def _file_document(file: FileReport) -> dict[str, Any]:
    return {
        "name": file.name,
        "path": file.path,
        "size_bytes": file.size_bytes,
        "status": file.status,
        "says": file.says,
        "todo": file.todo,
        "details": list(file.details),
    }
