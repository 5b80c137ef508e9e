"""Fixture machines: fixtures/machines/NAME.json laid out as the folders that a computer's /sys, /proc, /dev, /run are.

`tree` maps a folder to its files: text, `-> TARGET` for a symbolic link, `{"identify": ...}` for page 0x89 of a drive's
vital product data and `{"serial": ...}` for page 0x80. `identify` is what an opened device tells, `claimed` which ones
cannot be opened alone, `protected` our own paths. `refused` says which devices must not be erased and words of why,
`erasable` which may be, with their serial; all other disks of the computer are refused too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskprep.disk.machine import Machine

FOLDER = Path(__file__).parents[1] / "fixtures/machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

_FORMS = {"3.5": 2, "2.5": 3, "1.8": 4, "mSATA": 6, "M.2": 7}


@dataclass(frozen=True, kw_only=True)
class Fixture:
    machine: Machine
    refused: dict[str, list[str]]
    erasable: dict[str, str]
    protected: tuple[Path, ...]


def load(name: str, root: Path) -> Fixture:
    document = json.loads((FOLDER / f"{name}.json").read_text())
    lay_out(document["tree"], root)
    told = {Path("/dev") / disk: identify(**fields) for disk, fields in document.get("identify", {}).items()}
    claimed = {Path("/dev") / disk for disk in document.get("claimed", [])}
    return Fixture(
        machine=Machine(root, identify=lambda node: told.get(node, b""), claimed=lambda node: node in claimed),
        refused=document["refused"],
        erasable=document["erasable"],
        protected=tuple(map(Path, document.get("protected", []))),
    )


def lay_out(tree: dict[str, dict[str, Any]], root: Path) -> None:
    for folder, files in tree.items():
        for name, content in files.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                path.write_bytes(_page(content))
            elif content.startswith("-> "):
                path.symlink_to(content.removeprefix("-> "))
            else:
                path.write_text(f"{content}\n")


def identify(
    *,
    serial: str,
    model: str = "",
    firmware: str = "",
    rpm: int | None = 5400,
    form: str = "3.5",
    sata: int = 3,
    wwn: str = "",
) -> bytes:
    """IDENTIFY data as a drive sends it, with its sum."""
    data = bytearray(512)
    for start, length, text in ((20, 20, serial), (46, 8, firmware), (54, 40, model)):
        padded = text.rjust(length) if start == 20 else text.ljust(length)
        data[start : start + length] = b"".join(
            padded[index : index + 2][::-1].encode("latin-1") for index in range(0, length, 2)
        )
    words = {76: (2 << sata) - 2 if sata else 0, 168: _FORMS.get(form, 0), 217: 1 if rpm == 0 else rpm or 0}
    if wwn:
        words |= {87: 0x4100, **{108 + index: int(wwn[4 * index : 4 * index + 4], 16) for index in range(4)}}
    for word, value in words.items():
        struct.pack_into("<H", data, 2 * word, value)
    data[510] = 0xA5
    data[511] = -sum(data) % 256
    return bytes(data)


def _page(content: dict[str, Any]) -> bytes:
    if "serial" in content:
        serial = content["serial"].encode("latin-1")
        return b"\0\x80" + len(serial).to_bytes(2, "big") + serial
    head = b"\0\x89" + (568).to_bytes(2, "big") + bytes(4) + b"ATA     linux libata    5.10"
    return head.ljust(56, b"\0") + b"\xec\0\0\0" + identify(**content["identify"])
