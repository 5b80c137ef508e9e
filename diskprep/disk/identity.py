"""Who a disk is: its serial number as the drive itself tells it, compared with what stands between may tell.

The datacenter reads the serial from the drive (ATA IDENTIFY), without spaces. A USB bridge may tell a number of its
own, so it is never taken from there, and a bridge that contradicts its drive is told.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

#: Numbers that drives and bridges tell when nobody gave them one.
_PLACEHOLDER = re.compile(r"(.)\1*|0*1234567890?.*|none|null|n/?a|unknown|default.*|to be filled.*", re.IGNORECASE)

#: word 168, bits 0-3 (ACS-4): the drive's width
_FORM_FACTORS = {1: "5.25", 2: "3.5", 3: "2.5", 4: "1.8", 5: "less than 1.8", 6: "mSATA", 7: "M.2", 8: "MicroSSD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A serial number and who told it. `by_bridge`: not the drive itself, but what it is attached through."""

    source: str
    serial: str
    by_bridge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AtaIdentity:
    """What a drive says of itself in IDENTIFY DEVICE. Empty text: it does not say.

    `rotation_rpm`: 0 for a drive without turning parts, None when not told. `sata_generation`: the highest of 1 to 3;
    0 when it is not SATA, None when it is and the speed is not told. `form_factor`: inches or a name.
    """

    serial: str
    model: str
    firmware: str
    wwn: str
    rotation_rpm: int | None
    form_factor: str
    sata_generation: int | None


def parse_identify(data: bytes) -> AtaIdentity | None:
    """512 bytes of IDENTIFY DEVICE data as the drive sends them (ACS-4, 7.13.6); None for what is none."""
    if len(data) < 512 or not any(data[:512]):
        return None
    if data[510] == 0xA5 and sum(data[:512]) % 256:  # the drive guards its data with a sum, and it is wrong
        return None
    words = struct.unpack_from("<256H", data)
    rate, sata = words[217], words[76]
    speeds = [generation for generation in (1, 2, 3) if sata >> generation & 1]
    name = words[108:112] if words[87] & 0xC100 == 0x4100 else ()
    return AtaIdentity(
        serial=clean(_swapped(data[20:40])),
        model=_swapped(data[54:94]),
        firmware=_swapped(data[46:54]),
        wwn="".join(f"{word:04x}" for word in name),
        rotation_rpm=0 if rate == 1 else rate if 0x401 <= rate < 0xFFFF else None,
        form_factor=_FORM_FACTORS.get(words[168] & 0xF, ""),
        sata_generation=0 if sata in {0, 0xFFFF} else max(speeds, default=None),
    )


def parse_vpd_ata(page: bytes) -> AtaIdentity | None:
    """The page 0x89 of a disk's vital product data (SAT, 12.4.2): it carries IDENTIFY data from byte 60 on."""
    is_it = len(page) >= 572 and page[1] == 0x89 and page[56] == 0xEC
    return parse_identify(page[60:572]) if is_it else None


def parse_vpd_serial(page: bytes) -> str:
    """The unit's serial number of page 0x80 (SPC), without spaces."""
    return clean(page[4 : 4 + int.from_bytes(page[2:4], "big")].decode("latin-1")) if len(page) > 4 else ""


def clean(serial: str) -> str:
    """A serial as the service has it: without spaces and padding."""
    return serial.strip("\0 \t\r\n").replace(" ", "")


def drive_serial(claims: Sequence[Claim]) -> str:
    """The serial that the drive itself tells, or empty when only a bridge tells one."""
    return next((claim.serial for claim in claims if not claim.by_bridge), "")


def contradictions(claims: Sequence[Claim]) -> list[tuple[Claim, Claim]]:
    """Pairs that tell different numbers."""
    return [(a, b) for a, b in itertools.combinations(claims, 2) if not _same(a.serial, b.serial)]


def is_placeholder(serial: str) -> bool:
    """Whether a number is one that many devices have: zeros, 0123456789, `none`."""
    return _PLACEHOLDER.fullmatch(serial) is not None


def _same(one: str, other: str) -> bool:
    """udev writes an underscore for a space; some bridges tell the drive's number as hexadecimal digits."""
    plain = [re.sub(r"[\s_]", "", text).upper() for text in (one, other)]
    return plain[0] == plain[1] or any(_unhex(a) == b for a, b in (plain, plain[::-1]))


def _unhex(text: str) -> str:
    try:
        return clean(bytes.fromhex(text).decode("ascii")).upper()
    except ValueError:
        return ""


def _swapped(data: bytes) -> str:
    """ATA text: the two letters of a word stand in the wrong order."""
    swapped = bytes(data[index ^ 1] for index in range(len(data)))
    return swapped.decode("latin-1").strip("\0 ")
