"""The stand-in as a whole: its ARM interface for the client, and the datacenter's staff as methods.

    receive     the package is opened          Shipping -> Received (when all its drives are there)
    process     every drive that came is read  Received -> Transferring -> Packaging
    ship_back   the drives leave               Packaging -> Completed | Closed

Write order of `process`, per drive: blobs, copy logs, then the drive's state; a stand-in killed in between reads that
drive again when `process` is called again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from diskprep import clock
from diskprep.datacenter import lifecycle
from diskprep.datacenter.arm import Arm
from diskprep.datacenter.endpoint import HOST, Endpoint
from diskprep.datacenter.intake import DriveOrder, DriveResult, copy_drive
from diskprep.datacenter.lifecycle import Refusal, StoredJob
from diskprep.datacenter.state import State
from diskprep.events import Emit, Note, Progress, silent
from diskprep.exchange.copylog import DriveStatus, write_copy_log
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
    """How a job stands."""

    job_name: str
    state: str
    drives: tuple[DriveOutcome, ...]


class Datacenter:
    """One stand-in over one state file and one storage account. A context manager; `start` opens the interface."""

    def __init__(
        self,
        state_path: Path,
        account: Account,
        *,
        token: Secret[str],
        now: Callable[[], datetime] = clock.now,
        port: int = 0,
    ) -> None:
        self._account, self._now = account, now
        self._state = State(state_path, now)
        self._endpoint = Endpoint(Arm(self._state, now), token, port)

    @property
    def base_url(self) -> str:
        """What the client is given instead of Azure's address."""
        return f"http://{HOST}:{self._endpoint.port}"

    def start(self) -> None:
        """Serve the ARM interface until `stop`."""
        self._endpoint.start()

    def stop(self) -> None:
        self._endpoint.stop()
        self._state.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def receive(self, job_name: str, drives: Mapping[str, Path], emit: Emit = silent) -> Summary:
        """Open a package: `drives` maps the serial number read from each disk to its image or device.

        Disks that are not the job's are put aside for the way back. Raises Refusal (a JobConflict).
        """
        key = self._state.find(job_name)
        job = self._state.change(key, lambda job: lifecycle.receive(job, drives.keys(), self._now()))
        known = {serial: path for serial, path in drives.items() if job.drive(serial) is not None}
        self._state.remember_drives(key, known)
        for serial in drives.keys() - known.keys():
            emit(Note(stage=_STAGE, item=serial, text=f"drive {serial} is not in job {job.name}: returned unprocessed"))
        for drive in job.properties["driveList"]:
            if drive["state"] == "NeverReceived":
                serial = drive["driveId"]
                emit(Note(stage=_STAGE, item=serial, text=f"drive {serial} of job {job.name} was not in the package"))
        return _summary(job)

    def process(self, job_name: str, emit: Emit = silent) -> Summary:
        """Copy every drive that was received, and pack. Done before: nothing happens. Raises Refusal."""
        key = self._state.find(job_name)
        job = self._state.get(key)
        if job.state in ("Packaging", "Completed", "Closed"):
            return _summary(job)
        paths = self._state.drives(key)
        if job.state not in ("Received", "Transferring") and not (job.state == "Shipping" and paths):
            raise Refusal("JobStateConflict", f"the job is {job.state}: nothing was received", 409)
        for drive in job.properties["driveList"]:
            if drive["state"] in ("Received", "Transferring") and not job.properties["cancelRequested"]:
                job = self._process_drive(key, drive["driveId"], paths.get(drive["driveId"]), emit)
        job = self._state.change(key, lambda job: lifecycle.pack(job, self._now()))
        return _summary(job)

    def ship_back(self, job_name: str, *, carrier: str = "DHL", tracking_number: str = "RETURN-1") -> Summary:
        """Send the drives back: the job ends. Raises Refusal (a JobConflict)."""
        key = self._state.find(job_name)
        job = self._state.change(key, lambda job: lifecycle.ship_back(job, carrier, tracking_number, self._now()))
        return _summary(job)

    def _process_drive(self, key: str, drive_id: str, path: Path | None, emit: Emit) -> StoredJob:
        job = self._state.change(key, lambda job: lifecycle.start_drive(job, drive_id, self._now()))
        drive = job.drive(drive_id)
        assert drive is not None, "the drive was listed a moment ago"
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
            path=path or Path("/nonexistent"),
            recovery_password=job.keys[drive_id],
            manifest_file=drive["manifestFile"],
            manifest_hash=drive["manifestHash"],
            diagnostics_path=job.properties["diagnosticsPath"],
        )
        result = copy_drive(order, self._account, on_progress)
        uris = self._write_logs(job, drive_id, result)
        status = DriveStatus(result.log.status)
        emit(Note(stage=_STAGE, item=drive_id, text=f"drive {drive_id}: {status}"))
        return self._state.change(
            key, lambda job: lifecycle.finish_drive(job, drive_id, status, result.bytes_succeeded, uris)
        )

    def _write_logs(self, job: StoredJob, drive_id: str, result: DriveResult) -> dict[str, str]:
        """Put the logs beside the blobs, named as the service names them; return their URIs by the job's field."""
        moment = self._now()
        label = "".join(sign if (sign.isascii() and sign.isalnum()) or sign in "-_." else "_" for sign in drive_id)
        stem = f"waies/{job.name}_{label}_{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03}"
        uris: dict[str, str] = {}

        def write(field: str, kind: str, data: bytes) -> None:
            name = f"{stem}_{kind}.xml"
            result.container.write(name, [data])
            uris[field] = f"https://{self._account.name}.blob.core.windows.net/{result.container_name}/{name}"

        if job.properties["logLevel"] == "Verbose":
            write("verboseLogUri", "verbose", write_copy_log(result.log))
        if result.log.status not in (DriveStatus.COMPLETED, DriveStatus.COMPLETED_WITH_WARNINGS):
            write("errorLogUri", "error", write_copy_log(result.log.errors_only))
        if job.properties["backupDriveManifest"] and result.manifest:
            write("manifestUri", "manifest", result.manifest)
        return uris


def _summary(job: StoredJob) -> Summary:
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
    )
