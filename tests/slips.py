"""Packing slips for tests: of one disk to ten, tame and hostile."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, date, datetime
from typing import Any

from diskprep.importjob.model import Address, Package, ReturnAddress, ReturnShipping
from diskprep.importjob.paper import Slip, SlipDisk, address_lines

ADDRESS = Address(
    recipient_name="Import/Export stand-in, Receiving",
    street_address1="Voorbeeldstraat 3",
    city="Voorbeeldam",
    postal_code="0000 AA",
    country_or_region="Netherlands",
    phone="+31 00 000 0000",
)
RETURN = ReturnAddress(
    recipient_name="Backup Desk",
    street_address1="1 Example Street",
    city="Exampleton",
    postal_code="00001",
    country_or_region="USA",
    phone="+1 000",
    email="desk@example.org",
)
PACKAGE = Package(carrier="DHL", tracking_number="JD014600006228974621", drive_count=3, ship_date=date(2026, 3, 2))
CHECKS = tuple(
    f"Sentence {number}: the disks are padded on all sides, and none touches another." for number in range(14)
)
#: What an address may hold that is none: markup, another line, a turned direction, half a character.
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</address><img src=http://canary.invalid/x onerror=document.title='owned'>",
    '"><style>@import url(http://canary.invalid/y);</style>',
    "&lt;b&gt; {job} %s {{",
    "line one\nline two\r\n\tline three\u2028line four",
    "Left \u202eright\u202c \u2066isolate\u2069 \u200e\u200f \x00\x1b[2J \ud800",
    "שלום street 5, مرحبا 7",
    "W" * 300,
)


def make_slip(count: int = 3, **changes: Any) -> Slip:
    slip = Slip(
        job_name="first-backup",
        region="westeurope",
        ship_to=address_lines(ADDRESS),
        ship_to_region="westeurope",
        disks=tuple(
            SlipDisk(serial=f"WD-WCC7K{number:07}", model="WDC WD40EFRX-68N32N0", size_bytes=4_000_787_030_016)
            for number in range(1, count + 1)
        ),
        made=datetime(2026, 3, 1, 12, tzinfo=UTC),
        ship_until=datetime(2026, 3, 15, 11, 59, 59, tzinfo=UTC),
        return_address=RETURN,
        return_shipping=ReturnShipping(carrier="DHL", account_number="123456789"),
        checklist=CHECKS,
    )
    return replace(slip, **changes)


def shipped(slip: Slip) -> Slip:
    return replace(slip, package=replace(PACKAGE, drive_count=len(slip.disks)), ship_until=None)


def with_text(text: str) -> Slip:
    """A slip with `text` wherever a text may come from outside."""
    return make_slip(
        2,
        region=text,
        ship_to_region=text,
        ship_to=(text, text),
        disks=(SlipDisk(serial="A<>&'\"1", model=text), SlipDisk(serial="B2", model=text, size_bytes=10**9)),
        package=Package(carrier=text, tracking_number=text),
        return_address=ReturnAddress(**{field.name: text for field in fields(ReturnAddress)}),
        return_shipping=ReturnShipping(carrier=text, account_number=text),
        inbound_id=text,
        checklist=(text, text),
    )
