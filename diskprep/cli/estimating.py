"""What the options around an estimate mean, and what an estimate means: room, disks, hours, ship or upload.

`forecast` is arithmetic without input or output. It stands here, above the stages, for it needs the plan's view of a
disk beside the staging's estimate.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import durable
from diskprep.cli import inputs, output
from diskprep.disk import plan as plans
from diskprep.errors import StorageFull, UsageError
from diskprep.repository.repository import DEFAULT_PACK_BYTES
from diskprep.seal import FileKind, SealedFile
from diskprep.staging.preflight import Estimate, Scan

_RESERVE_PART = 50
_RESERVE_BYTES = 16 << 20  # a pack under way, journals, the seal
DISK_RATE = 150e6  # a hard disk's mean over its whole surface
SHIPPING_DAYS = (2.0, 5.0)
IMPORT_DAYS = (7.0, 10.0)  # usual, not promised
_DAY_S = 86400

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(bit|bps|b)(?:/s|ps)?", re.IGNORECASE)


def rate(text: str) -> float:
    """Bytes a second: `100Mbit`, `1Gbit/s`, `50Mbps` in bits, `12MB`, `12MB/s`, `10MiB/s` in bytes. K, M, G, T are
    powers of 1000; with i, of 1024. Raises UsageError; also for a lone small b, which may mean either."""
    match = _RATE.fullmatch(text.strip())
    if match is None or match[4] == "b":
        raise UsageError(f"{text!r} is not a rate", hint="write it as 100Mbit (bits) or 12MB (bytes), a second")
    bits = match[4].lower() == "bit" or match[4].startswith("b")
    base = 1024.0 if match[3] else 1000.0
    value = float(match[1]) * math.pow(base, " kmgt".index(match[2].lower() or " "))
    if not value:
        raise UsageError(f"{text!r} is no rate at all", hint="leave the option out when it is not known")
    return value / 8 if bits else value


AllowTight = Annotated[
    bool, typer.Option("--allow-tight", help="Begin although the backup will likely not fit into the free space.")
]
DiskSize = Annotated[
    int | None,
    typer.Option(
        "--disk-size", metavar="SIZE", parser=inputs.size_bytes, help="Size of the disks at hand.", show_default=False
    ),
]
DiskRate = Annotated[
    float | None,
    typer.Option(
        "--disk-rate", metavar="RATE", parser=rate, help="How fast a disk writes, as 150MB.", show_default=False
    ),
]
UploadRate = Annotated[
    float | None,
    typer.Option(
        "--upload-rate", metavar="RATE", parser=rate, help="What the network carries, as 100Mbit.", show_default=False
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option("--scratch", metavar="DIR", help="A folder for what is only needed meanwhile.", show_default=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Room in a place: `free_bytes` of the file system `device`, for somebody without privileges."""

    where: str
    device: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a place must still take, its reserve included, and what it has."""

    space: Space
    need_bytes: int

    @property
    def tight(self) -> bool:
        return self.need_bytes > self.space.free_bytes


class Advice(StrEnum):
    SHIP = "ship"
    UPLOAD = "upload"
    EITHER = "either"
    UNKNOWN = "unknown"  # without an upload rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What staging, disks and network will have to do. `needs`: one a file system. `disks`: how many of `disk_bytes`
    the likely size takes, `disks_high` the estimate's high end, in `jobs` import jobs; 0 when no size is known.
    `fill_hours`: writing and reading back, one disk after the other. `journey_days`: from the first byte on a disk to
    the end of the import, at best and at worst. Rates are bytes a second; an upload at `even_rate` takes as long as the
    mean journey."""

    estimate: Estimate
    needs: tuple[Need, ...]
    ship_bytes: int
    disk_bytes: int | None
    disks: int
    disks_high: int
    jobs: int
    disk_rate: float
    fill_hours: float
    shipping_days: tuple[float, float]
    import_days: tuple[float, float]
    journey_days: tuple[float, float]
    upload_rate: float | None
    upload_hours: float | None
    even_rate: float
    advice: Advice


_SAYS = {
    Advice.SHIP: "ship disks; uploading takes longer than the slowest journey",
    Advice.UPLOAD: "upload; it is over before the fastest journey",
    Advice.EITHER: "either; uploading takes as long as a journey may",
}


def space_at(path: Path) -> Space:
    """The room where `path` is, or will be made. Raises NotFound or StorageUnavailable."""
    step = path.absolute()
    try:
        while not step.exists() and step != step.parent:
            step = step.parent
        numbers, device = os.statvfs(step), step.stat().st_dev
    except OSError as error:
        raise durable.storage_error(error, f"ask how much room {path} has") from error
    return Space(where=str(path), device=device, free_bytes=numbers.f_bavail * numbers.f_frsize)


def packs_bytes(disk_bytes: int) -> int:
    """How many bytes of packs a disk of this size takes. Their index files are small beside an estimate's error."""
    pack = SealedFile(name="", kind=FileKind.DATA, size_bytes=DEFAULT_PACK_BYTES, sha256="")
    return plans.usable_bytes(disk_bytes) * pack.size_bytes // plans.footprint_bytes(pack)


def forecast(
    expected: Estimate,
    *,
    staging: Space,
    staged_bytes: int = 0,
    scratch: Space | None = None,
    scratch_bytes: int = 0,
    allow_tight: bool = False,
    disk_bytes: int | None = None,
    disk_rate: float = DISK_RATE,
    upload_rate: float | None = None,
    shipping_days: tuple[float, float] = SHIPPING_DAYS,
    import_days: tuple[float, float] = IMPORT_DAYS,
) -> Forecast:
    """What an estimate means for these places, disks and rates. `staged_bytes` are in the staging already, from a run
    that was cut off; `scratch` must take `scratch_bytes`.

    Raises StorageFull when the likely size and a reserve do not fit, unless `allow_tight`; UsageError for disks too
    small to be planned with.
    """
    needs = _needs(max(0, expected.likely_bytes - staged_bytes), staging, scratch_bytes, scratch)
    tight = [need for need in needs if need.tight]
    if tight and not allow_tight:
        raise _too_full(expected, staged_bytes, tight)
    ship_bytes = expected.likely_bytes - expected.online_bytes
    disks = disks_high = 0
    if disk_bytes is not None:
        if disk_bytes < plans.MIN_DISK_BYTES:
            raise UsageError(f"a disk of {disk_bytes} bytes is smaller than {plans.MIN_DISK_BYTES >> 20} MiB")
        takes = packs_bytes(disk_bytes)
        disks = -(-ship_bytes // takes)
        disks_high = -(-(expected.high_bytes - expected.online_bytes) // takes)
    fill_s = 2 * ship_bytes / disk_rate
    best, worst = (fill_s / _DAY_S + shipping_days[end] + import_days[end] for end in (0, 1))
    upload_s = None if upload_rate is None else expected.likely_bytes / upload_rate
    return Forecast(
        estimate=expected,
        needs=needs,
        ship_bytes=ship_bytes,
        disk_bytes=disk_bytes,
        disks=disks,
        disks_high=disks_high,
        jobs=plans.jobs_needed(disks),
        disk_rate=disk_rate,
        fill_hours=fill_s / 3600,
        shipping_days=shipping_days,
        import_days=import_days,
        journey_days=(best, worst),
        upload_rate=upload_rate,
        upload_hours=None if upload_s is None else upload_s / 3600,
        even_rate=expected.likely_bytes / ((best + worst) / 2 * _DAY_S),
        advice=_advice(upload_s, best, worst),
    )


def lines(made: Forecast, found: Scan | None = None) -> list[str]:
    """The forecast for people, most important first; with the scan also what the source holds."""
    expected, told = made.estimate, []
    if found is not None:
        told.append(
            f"source: {found.files} files, {output.size(found.size_bytes)}; the longest is "
            f"{output.size(found.largest_bytes)}; {found.small_files} are not longer than 512 KiB"
            + (f"; {found.unreadable} entries cannot be looked at" if found.unreadable else "")
        )
    told.append(
        f"staged: likely {output.size(expected.likely_bytes)}, {output.size(expected.low_bytes)} to "
        f"{output.size(expected.high_bytes)}; less when files repeat each other"
    )
    told += [
        f"{need.space.where}: needs {output.size(need.need_bytes)}, {output.size(need.space.free_bytes)} free"
        + (" - tight" if need.tight else "")
        for need in made.needs
    ]
    if made.disk_bytes is not None:
        more = f", {made.disks_high} if it comes to the most" if made.disks_high != made.disks else ""
        jobs = f"; that takes {made.jobs} import jobs" if made.jobs > 1 else ""
        told.append(f"disks: {made.disks} of {output.size(made.disk_bytes)}{more}{jobs}")
    told.append(
        f"shipping: {_span(made.journey_days)}: {_hours(made.fill_hours)} to fill and read back at "
        f"{output.size(made.disk_rate)}/s, {_span(made.shipping_days)} on the way, {_span(made.import_days)} to import"
    )
    if made.upload_rate is None or made.upload_hours is None:
        told.append(f"uploading: as fast as shipping at {_bits(made.even_rate)}")
    else:
        told.append(f"uploading: {_hours(made.upload_hours)} at {_bits(made.upload_rate)}")
        told.append(f"advice: {_SAYS[made.advice]}; both are equally fast at {_bits(made.even_rate)}")
    return told


def document(made: Forecast, found: Scan | None = None) -> dict[str, Any]:
    """The forecast for --json."""
    estimate = {field.name: getattr(made.estimate, field.name) for field in fields(made.estimate)}
    written: dict[str, Any] = {
        field.name: getattr(made, field.name) for field in fields(made) if field.name not in ("estimate", "needs")
    }
    places = [
        {
            "place": need.space.where,
            "need_bytes": need.need_bytes,
            "free_bytes": need.space.free_bytes,
            "tight": need.tight,
        }
        for need in made.needs
    ]
    written |= {"advice": str(made.advice), "estimate": estimate, "needs": places, "deduplication": "not estimated"}
    if found is not None:
        written["source"] = {f.name: getattr(found, f.name) for f in fields(found) if f.name != "samples"}
    return written


def _advice(upload_s: float | None, best: float, worst: float) -> Advice:
    if upload_s is None:
        return Advice.UNKNOWN
    days = upload_s / _DAY_S
    return Advice.UPLOAD if days <= best else Advice.SHIP if days >= worst else Advice.EITHER


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} minutes" if hours * 60 >= 1 else "less than a minute"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def _span(days: tuple[float, float]) -> str:
    return f"{days[0]:.3g} to {days[1]:.3g} days"


def _bits(rate_bytes: float) -> str:
    bits = rate_bytes * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s"


def _needs(staging_bytes: int, staging: Space, scratch_bytes: int, scratch: Space | None) -> tuple[Need, ...]:
    first = Need(space=staging, need_bytes=_with_reserve(staging_bytes))
    if scratch is None:
        return (first,)
    if scratch.device != staging.device:
        return first, Need(space=scratch, need_bytes=_with_reserve(scratch_bytes))
    where = f"{staging.where} with {scratch.where}"
    free_bytes = min(staging.free_bytes, scratch.free_bytes)
    return (
        Need(
            space=Space(where=where, device=staging.device, free_bytes=free_bytes),
            need_bytes=_with_reserve(staging_bytes + scratch_bytes),
        ),
    )


def _with_reserve(need_bytes: int) -> int:
    return need_bytes + need_bytes // _RESERVE_PART + _RESERVE_BYTES if need_bytes else 0


def _too_full(expected: Estimate, staged_bytes: int, tight: Sequence[Need]) -> StorageFull:
    places = "; ".join(
        f"{need.space.where} needs {need.need_bytes / 1e9:.3f} GB free and has {need.space.free_bytes / 1e9:.3f} GB"
        for need in tight
    )
    there = f", {staged_bytes / 1e9:.3f} GB of it are there" if staged_bytes else ""
    return StorageFull(
        f"{places}: the backup will likely take {expected.likely_bytes / 1e9:.3f} GB "
        f"({expected.low_bytes / 1e9:.3f} to {expected.high_bytes / 1e9:.3f} GB){there}",
        hint="name a place with more room, or go on all the same with --allow-tight",
    )
