"""The clock: the one module that asks the computer for the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, with a zone (UTC)."""
    return datetime.now(UTC)


def monotonic_s() -> float:
    """Seconds on a clock that only goes forward; differences alone have a meaning."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def rfc3339(moment: datetime) -> str:
    """`moment` as RFC 3339 text in UTC with a `Z`, to the microsecond where it has one."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """The inverse of `rfc3339`; digits past the microsecond are cut. Raises ValueError."""
    if text.endswith(("Z", "z")):
        text = text[:-1] + "+00:00"
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[: min(digits, 6)].ljust(6, '0')}{tail[digits:]}"
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
