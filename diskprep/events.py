"""Events: what a stage says while it works. Only the command line turns them into bars and lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`done_bytes` of `total_bytes` (None: unknown) are through `stage`; `item` tells disks of one stage apart.

    `unit` is "B"; "%" where nobody tells bytes, then they are of 100.

    Cumulative, not a difference, so that an event may be lost without harm.
    """

    stage: str
    done_bytes: int
    total_bytes: int | None = None
    item: str = ""
    unit: str = "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line for a person, without secrets."""

    stage: str
    text: str
    item: str = ""


Event = Progress | Note
Emit = Callable[[Event], None]


def silent(_event: Event) -> None:
    """An `Emit` that drops everything."""
