"""The stand-in as a whole: its ARM interface for the client, and the datacenter's staff as methods.

    receive     the package is opened          Shipping -> Received (when all its drives are there)
    process     every drive that came is read  Received -> Transferring -> Packaging
    ship_back   the drives leave               Packaging -> Completed | Closed

Write order of `process`, per drive: blobs, copy logs, then the drive's state; a stand-in killed in between reads that
drive again when `process` is called again, and writes the same logs under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from diskprep import clock, durable
from diskprep.datacenter import lifecycle
from diskprep.datacenter.arm import Arm
from diskprep.datacenter.bodies import Mode
from diskprep.datacenter.endpoint import HOST, Endpoint
from diskprep.datacenter.faults import NO_FAULTS, DriveFault, DriveFaults, ServiceFault
from diskprep.datacenter.intake import DriveOrder, DriveResult, copy_drive
from diskprep.datacenter.intake_log import Spool
from diskprep.datacenter.lifecycle import StoredJob
from diskprep.datacenter.orders import Order
from diskprep.datacenter.refusal import Refusal
from diskprep.datacenter.state import ReceivedDrive, State
from diskprep.errors import UsageError
from diskprep.events import Emit, Note, Progress, silent
from diskprep.secrets import Secret
from diskprep.store import Account

_STAGE = "datacenter"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOutcome:
    """How a drive ended. `status` is the published word; `bytes_succeeded` counts blobs that are in the container."""

    drive_id: str
    state: str
    status: str
    bytes_succeeded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a job stands. `late`: drives that are still expected, for which the job waits."""

    job_name: str
    state: str
    drives: tuple[DriveOutcome, ...]
    late: tuple[str, ...] = ()


class Datacenter:
    """One stand-in over one state file and one storage account. A context manager; `start` opens the interface.

    `now` is the computer's clock; the stand-in's own is ahead of it by what `advance` moved it. `mode` says how much
    is asked of clients. Several may be open on one state file: one that serves, one that receives.
    """

    def __init__(
        self,
        state_path: Path,
        account: Account,
        *,
        token: Secret[str],
        now: Callable[[], datetime] = clock.now,
        port: int = 0,
        mode: Mode = Mode.STRICT,
    ) -> None:
        self._account, self._state_path = account, state_path
        self._token, self._port, self._mode = token, port, mode
        self._state = State(state_path, now)
        self._endpoint: Endpoint | None = None

    @property
    def base_url(self) -> str:
        """What the client is given instead of Azure's address, once started."""
        assert self._endpoint is not None, "started"
        return f"http://{HOST}:{self._endpoint.port}"

    def now(self) -> datetime:
        """The stand-in's own time."""
        return self._state.clock()

    def advance(self, step: timedelta) -> datetime:
        """Move the stand-in's clock forward; return the new time. Raises UsageError."""
        return self._state.clock.advance(step)

    def order_fault(
        self, fault: ServiceFault, *, times: int = 1, method: str = "", retry_after_s: int = 1
    ) -> tuple[Order, ...]:
        """Let something go wrong with the next `times` requests (of a method); return all that is ordered.

        Raises UsageError.
        """
        self._state.orders.add(Order(fault=fault, times=times, method=method, retry_after_s=retry_after_s))
        return self._state.orders.left()

    def ordered_faults(self) -> tuple[Order, ...]:
        return self._state.orders.left()

    def clear_faults(self) -> None:
        """Forget what was ordered for the management interface."""
        self._state.orders.clear()

    def start(self) -> None:
        """Serve the ARM interface until `stop`."""
        self._endpoint = Endpoint(Arm(self._state, self._mode), self._token, self._port)
        self._endpoint.start()

    def stop(self) -> None:
        if self._endpoint is not None:
            self._endpoint.stop()
        self._state.close()

    close = stop

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def look(self, job_name: str) -> Summary:
        """How a job stands. Raises Refusal."""
        key = self._state.find(job_name)
        return self._summary(key, self._state.get(key))

    def check_package(
        self, job_name: str, serials: Collection[str], faults: Mapping[str, DriveFaults] | None = None
    ) -> None:
        """Look whether a package is described in full: `serials` of its disks, `faults` as for `receive`.

        Raises UsageError when a fault is of a drive that is not the job's, or a drive of a job that waits for its
        package is neither in it nor said to be lost or late. Raises Refusal (a JobConflict).
        """
        with self._expected(job_name):
            key = self._state.find(job_name)
        job, faults = self._state.get(key), faults or {}
        drives = {drive["driveId"]: drive["state"] for drive in job.properties["driveList"]}
        if strangers := sorted(faults.keys() - drives):
            raise UsageError(
                f"a fault is ordered for {', '.join(map(ascii, strangers))}, which is not in import job {job.name}",
                hint=f"its drives are {', '.join(drives)}",
            )
        if job.state not in ("Shipping", "Received", "Transferring", "Faulted") or job.properties["cancelRequested"]:
            return
        said = {serial: drive.faults for serial, drive in self._state.drives(key).items()} | dict(faults)
        forgotten = [
            serial
            for serial, state in drives.items()
            if state in ("Specified", "NeverReceived")
            and serial not in serials
            and not (said.get(serial, NO_FAULTS).faults & {DriveFault.LOST, DriveFault.LATE})
        ]
        if forgotten:
            raise UsageError(
                f"nothing is said of drive {', '.join(forgotten)}, which is in import job {job.name}",
                hint=f"give {forgotten[0]}=DISK, or --fault {forgotten[0]}=lost, or --fault {forgotten[0]}=late",
            )

    def receive(
        self,
        job_name: str,
        drives: Mapping[str, Path],
        emit: Emit = silent,
        *,
        faults: Mapping[str, DriveFaults] | None = None,
    ) -> Summary:
        """Open a package: `drives` maps the serial number read from each disk to its image or device.

        `faults` says by serial number what is wrong with a drive, and is kept until it is read: one that is LOST never
        comes, one that is LATE comes with a later call without that fault, for which the job waits. Disks that are not
        the job's are put aside for the way back. The same package may be opened twice. Raises Refusal (a JobConflict).
        """
        with self._expected(job_name):
            key = self._state.find(job_name)
        known = {drive["driveId"] for drive in self._state.get(key).properties["driveList"]}
        before, came = self._state.drives(key), {}
        for serial in known & {*drives, *(faults or {})}:
            came[serial] = _arrival(before.get(serial), drives.get(serial), (faults or {}).get(serial))
        here = [serial for serial, drive in came.items() if drive.path is not None]
        job = self._state.receive(key, came, lambda job: lifecycle.receive(job, here, self.now()))
        for serial in sorted(drives.keys() - known):
            emit(Note(stage=_STAGE, item=serial, text=f"drive {serial} is not in job {job.name}: returned unprocessed"))
        for drive in job.properties["driveList"]:
            if drive["state"] == "NeverReceived":
                serial = drive["driveId"]
                emit(Note(stage=_STAGE, item=serial, text=f"drive {serial} of job {job.name} was not in the package"))
        return self._summary(key, job)

    def process(self, job_name: str, emit: Emit = silent) -> Summary:
        """Copy every drive that was received, and pack, unless a drive is late. Done before: nothing happens.

        Raises Refusal, and Locked when another process copies drives of this stand-in.
        """
        key = self._state.find(job_name)
        with self._copying():
            job = self._state.get(key)
            if job.state in ("Packaging", "Completed", "Closed"):
                return self._summary(key, job)
            came = {serial for serial, drive in self._state.drives(key).items() if drive.path is not None}
            if job.state not in ("Received", "Transferring", "Faulted") and not (job.state == "Shipping" and came):
                raise Refusal("JobStateConflict", f"the job is {job.state}: nothing was received", 409)
            for drive in job.properties["driveList"]:
                if drive["state"] in ("Received", "Transferring") and not job.properties["cancelRequested"]:
                    job = self._process_drive(key, drive["driveId"], emit)
            late = self._late(key, job)
            for serial in late:
                emit(Note(stage=_STAGE, item=serial, text=f"drive {serial} of job {job.name} is late: the job waits"))
            if not late:
                job = self._state.change(key, lambda job: lifecycle.pack(job, self.now()))
            return self._summary(key, job)

    def ship_back(self, job_name: str, *, carrier: str = "", tracking_number: str = "RETURN-1") -> Summary:
        """Send the drives back: the job ends. `carrier` "" is the job's own. Raises Refusal (a JobConflict)."""
        key = self._state.find(job_name)
        job = self._state.change(key, lambda job: lifecycle.ship_back(job, carrier, tracking_number, self.now()))
        return self._summary(key, job)

    def get_stuck(self, job_name: str) -> Summary:
        """Leave a job as Faulted, until `process` is called again. Raises Refusal."""
        key = self._state.find(job_name)
        return self._summary(key, self._state.change(key, lambda job: lifecycle.get_stuck(job, self.now())))

    @contextmanager
    def _expected(self, job_name: str) -> Iterator[None]:
        """Say what becomes of a package whose job is not known."""
        try:
            yield
        except Refusal as refusal:
            if refusal.code != "ResourceNotFound":
                raise
            raise Refusal(
                "PackageWithoutJob",
                f"a package came for import job {job_name!a}, which was not found: the drives are kept while the "
                "operators look for their owner, and sent back or destroyed in the end",
                404,
                hint="a job without a tracking number is deleted after two weeks; `diskprep job create` makes it again",
            ) from None

    def _copying(self) -> AbstractContextManager[None]:
        """Nobody else copies. The lock ends with the process."""
        return durable.only_process(
            self._state_path.with_name(f"{self._state_path.name}-copying"),
            busy="another process copies drives of this stand-in",
            hint="give the command again when it is through",
        )

    def _process_drive(self, key: str, drive_id: str, emit: Emit) -> StoredJob:
        job, started, again = self._state.start_drive(key, drive_id)
        drive, kept = job.drive(drive_id), self._state.drives(key).get(drive_id)
        assert drive is not None, "the drive was listed a moment ago"
        if again:
            emit(Note(stage=_STAGE, item=drive_id, text=f"drive {drive_id} was not read to its end: read again"))
        shown = -1

        def on_progress(done: int, total: int) -> None:
            nonlocal shown
            emit(Progress(stage=_STAGE, item=drive_id, done_bytes=done, total_bytes=total))
            percent = done * 100 // max(1, total)
            if percent // 5 > shown // 5:  # a transaction each: every twentieth part is enough for a poll
                shown = percent
                self._state.change(key, lambda job: lifecycle.progress(job, drive_id, percent))

        order = DriveOrder(
            serial=drive_id,
            path=kept.path if kept is not None and kept.path is not None else Path("/nonexistent"),
            recovery_password=job.keys[drive_id],
            manifest_file=drive["manifestFile"],
            manifest_hash=drive["manifestHash"],
            diagnostics_path=job.properties["diagnosticsPath"],
            again=again,
            keep_manifest=job.properties["backupDriveManifest"],
        )
        result = copy_drive(order, self._account, on_progress, NO_FAULTS if kept is None else kept.faults)
        uris = self._write_logs(job, drive_id, started, result)
        emit(Note(stage=_STAGE, item=drive_id, text=f"drive {drive_id}: {result.status}"))
        return self._state.change(
            key, lambda job: lifecycle.finish_drive(job, drive_id, result.status, result.bytes_succeeded, uris)
        )

    def _write_logs(self, job: StoredJob, drive_id: str, moment: datetime, result: DriveResult) -> dict[str, str]:
        """Put the logs beside the blobs, named as the service names them; return their URIs by the job's field.

        `moment` is when the drive was first read, so that reading it again replaces the logs.
        """
        label = "".join(sign if (sign.isascii() and sign.isalnum()) or sign in "-_." else "_" for sign in drive_id)
        stem = f"waies/{job.name}_{label}_{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03}"
        wanted: tuple[tuple[str, str, Spool | None], ...] = (
            ("verboseLogUri", "verbose", result.verbose_log if job.properties["logLevel"] == "Verbose" else None),
            ("errorLogUri", "error", result.error_log),
            ("manifestUri", "manifest", result.manifest_copy),
        )
        uris: dict[str, str] = {}
        for field, kind, document in wanted:
            if document is not None:
                name = f"{stem}_{kind}.xml"
                document.store(result.container, name)
                uris[field] = f"https://{self._account.name}.blob.core.windows.net/{result.container_name}/{name}"
        return uris

    def _late(self, key: str, job: StoredJob) -> tuple[str, ...]:
        """The drives that are still expected."""
        kept = self._state.drives(key)
        return tuple(
            drive["driveId"]
            for drive in job.properties["driveList"]
            if drive["state"] == "NeverReceived"
            and drive["driveId"] in kept
            and DriveFault.LATE in kept[drive["driveId"]].faults.faults
        )

    def _summary(self, key: str, job: StoredJob) -> Summary:
        return Summary(
            job_name=job.name,
            state=job.state,
            drives=tuple(
                DriveOutcome(
                    drive_id=drive["driveId"],
                    state=drive["state"],
                    status=drive.get("copyStatus", ""),
                    bytes_succeeded=drive.get("bytesSucceeded", 0),
                )
                for drive in job.properties["driveList"]
            ),
            late=self._late(key, job) if job.state not in ("Completed", "Closed") else (),
        )


def _arrival(before: ReceivedDrive | None, path: Path | None, faults: DriveFaults | None) -> ReceivedDrive:
    """What is kept of a drive: lost once is lost for ever; late is over when it comes without being ordered late."""
    kept = before.faults if before is not None else NO_FAULTS
    if DriveFault.LOST in kept.faults:
        return ReceivedDrive(path=None, faults=kept)
    wanted = faults or replace(kept, faults=kept.faults - {DriveFault.LATE})
    if path is None or wanted.faults & {DriveFault.LOST, DriveFault.LATE}:
        return ReceivedDrive(path=before.path if before is not None else None, faults=wanted)
    return ReceivedDrive(path=path.absolute(), faults=wanted)
