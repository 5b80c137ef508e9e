"""Where a job's copy logs are, in the container or as files, and reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from diskprep import durable
from diskprep.errors import DataDamaged, NotFound
from diskprep.events import Emit, Progress
from diskprep.exchange.copylog import DriveStatus, read_log
from diskprep.exchange.logsummary import LogSummary
from diskprep.importjob.model import DriveStatus as JobDrive
from diskprep.importjob.model import Job
from diskprep.importjob.outcome import serial_of
from diskprep.store import Store, check_name

_CHUNK_BYTES = 8 << 20
_STAGE = "copy log"
_DATA_BOX_CONTAINER = "databoxcopylog"
#: Where the service puts logs: in a container of their own, or with a signature below the default name.
_FOLDERS = ("waies/", "waimportexport/waies/")


class Logs:
    """The logs that were found: by serial, and what is to be known of those that were not."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job, self._emit = job, emit
        self.found: dict[str, LogSummary] = {}
        self.notes: list[str] = []

    def read_file(self, path: Path) -> None:
        """A log that somebody downloaded. Raises NotFound, StorageUnavailable, DataDamaged."""
        log = read_log(_file_chunks(path, self._emit))
        serial = serial_of(self._job, log, path.name)
        if serial:
            self._add(serial, log)
        else:
            self.notes.append(f"{path.name} is no log of a drive of this job, by its drive id {log.drive_id!a}")

    def read_store(self, store: Store, *, full: bool) -> None:
        """What the container has; `full`: also what only the verbose logs tell. A damaged log is noted."""
        listed: list[str] | None = None
        for drive in self._job.drives:
            if drive.drive_id in self.found:
                continue
            names = [name for uri in _uris(drive, full=full) if (name := _at(store, uri))]
            if not names and _is_wanted(drive, full=full):
                listed = listed if listed is not None else _listed(store)
                names = _named(listed, self._job, drive, full=full)
            self._read_first(store, drive.drive_id, names)

    def _read_first(self, store: Store, serial: str, names: Sequence[str]) -> None:
        """The first of these logs that can be read."""
        for name in names:
            try:
                self._add(serial, read_log(_chunks(store, name, self._emit)))
            except (DataDamaged, NotFound) as error:
                self.notes.append(f"the copy log {name} cannot be used: {error.message}")
            else:
                return

    def _add(self, serial: str, log: LogSummary) -> None:
        """Keep a log. A verbose one of the Data Box era tells of successes only, and takes no other's place."""
        if log.status or log.failed or serial not in self.found:
            self.found[serial] = log


def _is_wanted(drive: JobDrive, *, full: bool) -> bool:
    """Whether a drive's log tells anything that the job does not."""
    return full or drive.copy_status != DriveStatus.COMPLETED


def _uris(drive: JobDrive, *, full: bool) -> list[str]:
    """Where the service says a drive's logs are, the one to read first."""
    if not _is_wanted(drive, full=full):
        return []
    both = [drive.error_log_uri, drive.verbose_log_uri]
    return [uri for uri in (reversed(both) if full else both) if uri]


def _at(store: Store, uri: str) -> str:
    """The object that a URI names, if this container has it: its path with or without what stands for the container."""
    parts = unquote(urlsplit(uri).path).strip("/").split("/")
    for first in range(len(parts)):
        name = "/".join(parts[first:])
        try:
            check_name(name)
        except DataDamaged:
            continue
        if store.stat(name) is not None:
            return name
    return ""


def _listed(store: Store) -> list[str]:
    """All logs of a container, oldest first: their names end with the time."""
    folders = ("",) if store.location.rstrip("/").endswith(_DATA_BOX_CONTAINER) else _FOLDERS
    return sorted(stored.name for folder in folders for stored in store.list(folder) if stored.name.endswith(".xml"))


def _named(names: Sequence[str], job: Job, drive: JobDrive, *, full: bool) -> list[str]:
    """Which of these are a drive's, by their names; the one to read first is the first."""
    mark = f"_{drive.drive_id}_".lower()
    named = [name for name in names if mark in name.lower()]
    own = [name for name in named if _file_of(name).startswith(f"{job.name.lower()}_")] or _only_order(named, mark)
    errors = [name for name in own if name.endswith("_error.xml") or "_CopyLog_" in name]
    verbose = [name for name in own if name.endswith("_verbose.xml")]
    return [kind[-1] for kind in ((verbose, errors) if full else (errors, verbose)) if kind]


def _only_order(names: Sequence[str], mark: str) -> list[str]:
    """Logs of the Data Box era, whose order need not have the job's name; none where they are of several orders."""
    logs = [name for name in names if "_CopyLog_" in name or "_VerboseLog_" in name]
    return logs if len({_file_of(name).partition(mark)[0] for name in logs}) == 1 else []


def _file_of(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _chunks(store: Store, name: str, emit: Emit) -> Iterator[bytes]:
    stored = store.stat(name)
    if stored is None:
        raise NotFound(f"{name} is not in {store.location}")
    for offset in range(0, stored.size_bytes, _CHUNK_BYTES):
        yield store.read(name, offset, min(_CHUNK_BYTES, stored.size_bytes - offset))
        done = min(offset + _CHUNK_BYTES, stored.size_bytes)
        emit(Progress(stage=_STAGE, item=_file_of(name), done_bytes=done, total_bytes=stored.size_bytes))


def _file_chunks(path: Path, emit: Emit) -> Iterator[bytes]:
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                emit(Progress(stage=_STAGE, item=path.name, done_bytes=done, total_bytes=total))
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error
