"""Summary: what a rehearsal did, as a value that becomes summary.json and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from diskprep import clock


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigures:
    """One stage: the seconds it took, and the bytes that went through it (0 where bytes are not what it is about)."""

    name: str
    seconds: float
    bytes: int

    @property
    def megabytes_per_second(self) -> float:
        return self.bytes / self.seconds / 1e6 if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFigures:
    """One disk: its serial, its image, and the bytes of packs on it."""

    serial: str
    image: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A snapshot that was restored and compared with what the source was when it was taken."""

    name: str
    snapshot: str
    entries: int
    bytes: int
    added_bytes: int


@dataclass(slots=True, kw_only=True)
class Summary:
    """Filled while the journey goes on; `ok` is set at its very end."""

    source: str
    workdir: str
    ok: bool = False
    stages: list[StageFigures] = field(default_factory=list)
    disks: list[DiskFigures] = field(default_factory=list)
    recovery_points: list[RecoveryPoint] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    error: str = ""

    def document(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        document = asdict(self)
        document["stages"] = [
            {**stage, "seconds": round(stage["seconds"], 3), "bytes_per_second": round(rate.megabytes_per_second * 1e6)}
            for stage, rate in zip(document["stages"], self.stages, strict=True)
        ]
        document["seconds"] = round(sum(stage.seconds for stage in self.stages), 3)
        return document

    @contextmanager
    def stage(self, name: str) -> Iterator[Meter]:
        """Time a stage; its bytes are what the block leaves in the meter."""
        meter = Meter()
        start = clock.monotonic_s()
        yield meter
        self.stages.append(StageFigures(name=name, seconds=clock.monotonic_s() - start, bytes=meter.bytes))


@dataclass(slots=True)
class Meter:
    """The bytes of the stage that is being timed."""

    bytes: int = 0
