"""What a copy log comes to: how the drive ended, and the files that did not simply arrive.

Invariant: what succeeded is counted and forgotten, and of the rest a limited number is kept, so a log of a million
files takes no memory to speak of. What was not kept is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FAILED_LIMIT = 100_000
TOLD_LIMIT = 1_000
_TEXT_LIMIT_CHARS = 2_048


class LogForm(StrEnum):
    """Which of the published forms a log has."""

    CLASSIC = "classic"
    DATA_BOX = "data-box"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """A file that did not simply arrive; every field as the log has it, empty where it has none.

    `status`: of the blob, or the Data Box era's category. `parts`: statuses of blocks or page ranges that did not
    succeed, with their number. `message`: the service's own words, of the Data Box era.
    """

    status: str
    blob_path: str = ""
    file_path: str = ""
    length_bytes: int = 0
    disposition: str = ""
    parts: tuple[tuple[str, int], ...] = ()
    metadata: str = ""
    properties: str = ""
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """A log, read to its end. `drive_id` and `status` are empty when it has none, as Data Box's verbose logs.

    `failed`: files that are not there, or not whole. `told`: files that are there under another name, or were not
    written because something had their name; `told_counts`: how many of each kind. `unlisted`: how many more failed
    than `failed` names.
    """

    form: LogForm
    drive_id: str = ""
    status: str = ""
    files: int = 0
    failed: tuple[FileOutcome, ...] = ()
    told: tuple[FileOutcome, ...] = ()
    unlisted: int = 0
    told_counts: Mapping[str, int] = field(default_factory=dict)


class Collector:
    """Gathers a LogSummary, a file at a time."""

    __slots__ = ("_counts", "_failed", "_files", "_told", "_unlisted")

    def __init__(self) -> None:
        self._failed: list[FileOutcome] = []
        self._told: list[FileOutcome] = []
        self._counts: Counter[str] = Counter()
        self._files = self._unlisted = 0

    def add_good(self) -> None:
        """A file that arrived as it should."""
        self._files += 1

    def add_told(self, file: FileOutcome, kind: str) -> None:
        """A file that is there, but not as one would expect; `kind` is counted."""
        self._files += 1
        self._counts[kind] += 1
        if len(self._told) < TOLD_LIMIT:
            self._told.append(file)

    def add_failed(self, file: FileOutcome) -> None:
        """A file that is not there."""
        self._files += 1
        if len(self._failed) < FAILED_LIMIT:
            self._failed.append(file)
        else:
            self._unlisted += 1

    def result(self, form: LogForm, drive_id: str, status: str, *, errored: int = 0) -> LogSummary:
        """The summary. `errored`: how many files failed by the log's own count."""
        known = len(self._failed) + self._unlisted
        return LogSummary(
            form=form,
            drive_id=drive_id,
            status=status,
            files=self._files,
            failed=tuple(self._failed),
            told=tuple(self._told),
            unlisted=self._unlisted + max(0, errored - known),
            told_counts=dict(self._counts),
        )


def cut(text: str) -> str:
    """`text`, shortened where it is longer than any name or message."""
    return text if len(text) <= _TEXT_LIMIT_CHARS else text[:_TEXT_LIMIT_CHARS] + "..."
