"""A disk's health as smartctl tells it, where it is installed. It is asked for people only: no decision rests on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from diskprep.disk.inventory import DiskFacts
from diskprep.disk.programs import told

_TIMEOUT_S = 30.0  # a disk that sleeps has to start turning
_VIRTUAL = frozenset(("loop", "virtio", "xen", "network", "iscsi", "mmc"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The drive's own verdict. `passed` is None when it gives none; `says` is for people."""

    passed: bool | None
    says: str


def ask(disk: DiskFacts) -> Health:
    """What the drive says of its health. Never fails."""
    if disk.bus in _VIRTUAL or disk.is_stacked:
        return Health(passed=None, says="-")
    text = told("smartctl", "--json", "--health", "--info", str(disk.node), timeout_s=_TIMEOUT_S)
    return Health(passed=None, says="unknown (smartctl is missing or does not answer)") if text is None else parse(text)


def parse(text: str) -> Health:
    """smartctl's JSON. Its exit status is not needed: the flags that matter are in the document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    status = _member(document, "smart_status")
    passed = status.get("passed")
    if passed is True:
        return Health(passed=True, says="passed")
    if passed is False:
        return Health(passed=False, says="FAILING: the drive itself says so")
    messages = _member(document, "smartctl").get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    reason = _member({"message": first}, "message").get("string")
    return Health(passed=None, says=f"unknown ({reason})" if isinstance(reason, str) else "unknown")


def _member(document: object, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}
