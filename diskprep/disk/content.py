"""What is on a disk now, for the person who is about to erase it: partition tables, file systems, BitLocker, labels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diskprep.disk.inventory import DiskFacts
from diskprep.disk.machine import Machine
from diskprep.disk.programs import told
from diskprep.errors import DiskprepError
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import read_volume_identity

_TIMEOUT_S = 20.0
_TABLES = {"gpt": "GPT", "dos": "MBR"}
_UDEV = {"PTTYPE": "PART_TABLE_TYPE", "TYPE": "FS_TYPE", "LABEL": "FS_LABEL"}
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\(.)")
_OURS = re.compile(r"diskprep job (?P<job>\S+) disk (?P<serial>\S+) (?P<date>\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one device, the disk or a partition, carries. Empty text: nothing of the kind."""

    name: str
    size_bytes: int
    table: str
    kind: str
    label: str
    note: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.table or self.kind)


def look(disk: DiskFacts, machine: Machine | None = None) -> tuple[Found, ...] | None:
    """What the disk and its partitions carry, the disk first; None when it cannot be read (who is not root cannot)."""
    machine = machine or Machine()
    names = [disk.name, *machine.partitions(disk.name)]
    found = [_probe(machine, name) for name in names]
    return None if found[0] is None else tuple(part for part in found if part is not None)


def in_words(found: tuple[Found, ...] | None) -> str:
    """One line: the partition table and what each partition carries."""
    if found is None:
        return "not readable"
    disk, *parts = found
    words = [_TABLES.get(disk.table, disk.table)] if disk.table else []
    words += [_one(disk, "")] if disk.kind else []
    words += [_one(part, f"{part.name} ") for part in parts]
    return ", ".join(words) or "nothing known"


def _one(part: Found, name: str) -> str:
    label = f" {part.label!r}" if part.label else ""
    note = f" ({part.note})" if part.note else ""
    return f"{name}{part.kind or 'nothing known'}{label}{note}"


def _probe(machine: Machine, name: str) -> Found | None:
    known = _from_disk(machine, name) if machine.is_this else None
    if known is None:
        udev = machine.udev(name)
        if not udev:
            return None
        known = {key: udev.get(f"ID_{old}", "") for key, old in _UDEV.items()}
    table, kind = known.get("PTTYPE", ""), known.get("TYPE", "")
    return Found(
        name=name,
        size_bytes=int(machine.attribute(name, "size") or 0) * 512,
        table=table,
        kind=kind,
        label=known.get("LABEL", ""),
        note=_job(machine, name) if kind == "BitLocker" or table == "gpt" else "",
    )


def _from_disk(machine: Machine, name: str) -> dict[str, str] | None:
    """As blkid reads it from the device itself, not from its cache. None when it may not be read."""
    node = machine.node(name)
    try:
        open_for_reading(node).close()
    except DiskprepError:
        return None
    text = told("blkid", "--probe", "--output", "export", str(node), timeout_s=_TIMEOUT_S)
    return None if text is None else parse_export(text)


def parse_export(text: str) -> dict[str, str]:
    """The pairs that `blkid --output export` prints; what it escaped for a shell as it was."""

    def plain(value: str) -> str:
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], value)

    pairs = (line.partition("=") for line in text.splitlines())
    return {key: plain(value) for key, equals, value in pairs if equals}


def _job(machine: Machine, name: str) -> str:
    """The job that a disk of ours was made for."""
    try:
        with open_for_reading(machine.node(name)) as device:
            known = read_volume_identity(device)
    except DiskprepError:
        return ""
    match = _OURS.match(known[1]) if known else None
    return f"diskprep job {match['job']}, disk {match['serial']}, {match['date']}" if match else ""
