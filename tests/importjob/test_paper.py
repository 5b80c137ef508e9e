"""Packing slip and labels: complete, harmless whatever an address holds, without room for a secret, and only for a job
that waits for its package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import date, timedelta
from html.parser import HTMLParser
from typing import Any, get_args, get_type_hints

import pytest
from slips import ADDRESS, HOSTILE, RETURN, make_slip, shipped, with_text
from support import TurnedClock

from diskprep.cli.slip import make_slip as slip_of
from diskprep.errors import DataDamaged, JobConflict, NotFound, ServiceError, UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob import paper
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import Address, Drive, ReturnAddress, ReturnShipping
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging

#: Everything the page is made of. Nothing that loads, runs, or submits is among it.
ELEMENTS = """html head meta title style body section h1 h2 span b div address svg path p dl dt dd table thead tbody tr
    th td ul li strong br"""
ATTRIBUTES = "lang charset http-equiv content name class dir role aria-label viewbox transform d stroke"


class Page(HTMLParser):
    """The page's elements in order, its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.words: list[str] = []
        self._in_style = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= dict(attrs)
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page(slip: paper.Slip) -> Page:
    return Page(paper.packing_slip(slip))


def test_the_slip_tells_all_that_a_clerk_needs() -> None:
    text = page(make_slip()).text
    for line in (
        "import job first-backup",
        *paper.address_lines(ADDRESS),
        "One job \N{EN DASH} one package \N{EN DASH} one tracking number",
        "Disk 2 of 3 WD-WCC7K0000002 WDC WD40EFRX-68N32N0 4.0 TB",
        "Enter the tracking number before Sunday 15 March 2026, 11:59 UTC",
        RETURN.recipient_name,
        f"{RETURN.phone}, {RETURN.email}",
        "DHL 123456789",
        *make_slip().checklist,
    ):
        assert line in text


def test_every_disk_has_a_label() -> None:
    text = page(make_slip(10)).text
    assert [text.count(f"Disk {number} of 10 WD-WCC7K{number:07} WDC") for number in range(1, 11)] == [2] * 10


def test_a_tracking_number_that_was_entered_takes_the_place_of_the_deadline() -> None:
    text = page(shipped(make_slip())).text
    assert "The tracking number has been entered: DHL JD014600006228974621" in text
    assert "Shipped 2 March 2026" in text
    assert "before" not in text.split("Packed by")[0].replace("Before the package goes", "")


def test_what_is_not_known_yet_can_be_written_by_hand() -> None:
    html = paper.packing_slip(make_slip(return_address=None, return_shipping=None, inbound_id=""))
    for name in ("Carrier", "Tracking number", "Inbound ID"):
        assert f'<dt>{name}</dt><dd><span class="blank"></span></dd>' in html
    assert Page(html).text.count("Not entered yet") == 2
    assert "Inbound ID" not in paper.packing_slip(make_slip())
    assert "Inbound ID IN-42" in page(make_slip(inbound_id="IN-42")).text


def test_a_package_that_goes_to_another_region_names_both() -> None:
    assert "for region North Europe" in page(make_slip(region="North Europe")).text
    assert "for region" not in page(make_slip(region="West Europe")).text


def test_the_codes_name_job_region_and_disks() -> None:
    slip = make_slip(2)
    head = "diskprep 1\njob first-backup\nregion westeurope\n"
    assert paper.slip_text(slip) == f"{head}disk 1/2 WD-WCC7K0000001\ndisk 2/2 WD-WCC7K0000002"
    assert paper.label_text(slip, 1) == f"{head}disk 2/2 WD-WCC7K0000002"


def test_a_hostile_region_adds_no_line_to_a_code() -> None:
    assert paper.slip_text(make_slip(1, region="a\njob other\u202e")).splitlines() == [
        "diskprep 1",
        "job first-backup",
        "region a job other\\u202e",
        "disk 1/1 WD-WCC7K0000001",
    ]


def test_the_page_holds_nothing_that_loads_or_runs() -> None:
    html = paper.packing_slip(make_slip())
    found = Page(html)
    assert set(found.elements) <= set(ELEMENTS.split())
    assert set(found.attributes) <= set(ATTRIBUTES.split())
    assert "://" not in html
    assert not re.search(r"url\(|@import|expression|<script", html, re.IGNORECASE)
    assert "default-src 'none'" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_stays_text(text: str) -> None:
    tame, hostile = paper.packing_slip(with_text("tame")), paper.packing_slip(with_text(text))
    assert Page(hostile).elements == Page(tame).elements
    assert set(Page(hostile).attributes) == set(Page(tame).attributes)
    assert all(sign.isprintable() or sign == "\n" for sign in hostile)
    assert hostile.encode()
    if text.isprintable():
        assert text in Page(hostile).text


def test_no_value_of_a_slip_has_room_for_a_secret() -> None:
    seen: set[Any] = set()

    def look(kind: Any) -> None:
        if kind in seen:
            return
        seen.add(kind)
        for part in get_args(kind):
            look(part)
        if is_dataclass(kind):
            for hint in get_type_hints(kind).values():
                look(hint)

    look(paper.Slip)
    assert Address in seen or str in seen
    assert not any(isinstance(kind, type) and issubclass(kind, Secret) for kind in seen)
    names = {field.name for kind in seen if is_dataclass(kind) for field in fields(kind)}
    assert not [name for name in names if re.search("key|password|secret|token|hash", name)]


@pytest.mark.parametrize(
    "changes",
    [
        {"job_name": "../../etc/passwd"},
        {"job_name": "First Backup"},
        {"disks": ()},
        {"disks": make_slip(10).disks + make_slip(1).disks},
        {"disks": make_slip(1).disks * 2},
        {"disks": (paper.SlipDisk(serial="two words"),)},
        {"disks": (paper.SlipDisk(serial="A\nB"),)},
        {"ship_to": ()},
        {"ship_to": (" ", "")},
    ],
)
def test_what_cannot_be_a_job_makes_no_paper(changes: dict[str, Any]) -> None:
    with pytest.raises(DataDamaged):
        make_slip(**changes)


def test_an_address_has_no_empty_lines() -> None:
    assert paper.address_lines(replace(ADDRESS, phone="", state_or_province=" ")) == (
        "Import/Export stand-in, Receiving",
        "Voorbeeldstraat 3",
        "Voorbeeldam",
        "0000 AA",
        "Netherlands",
    )
    assert paper.address_lines(ADDRESS)[-1] == "Phone +31 00 000 0000"


def test_the_document_is_json_with_the_codes_in_it() -> None:
    slip = shipped(make_slip(2))
    document = json.loads(json.dumps(paper.document(slip)))
    assert document["qr_code"] == paper.slip_text(slip)
    assert document["label_qr_codes"] == [paper.label_text(slip, number) for number in range(2)]
    assert document["package"]["ship_date"] == "2026-03-02"
    assert document["made"] == "2026-03-01T12:00:00Z"
    assert document["ship_until"] is None
    assert paper.document(make_slip())["ship_until"] == "2026-03-15T11:59:59Z"


# --- from the job as the service has it


def test_a_job_that_waits_is_printed_with_its_deadline_by_the_services_clock(
    service: AzureImportService, staging: Staging, seed: Seed, drives: Sequence[Drive], test_clock: TurnedClock
) -> None:
    jobs.create_job(service, staging, seed, drives)
    slip = slip_of(service, staging, seed)
    assert [disk.serial for disk in slip.disks] == [drive.drive_id for drive in drives]
    assert slip.ship_until is not None
    assert abs(slip.ship_until - test_clock() - timedelta(days=14)) < timedelta(minutes=1)
    assert abs(slip.made - test_clock()) < timedelta(minutes=1)
    assert (slip.package, slip.return_address, slip.inbound_id) == (None, None, None)
    assert "Voorbeeldstraat 3" in slip.ship_to
    assert any("anti-static" in line for line in slip.checklist)


def test_a_package_on_its_way_is_printed_with_its_number_and_return(
    service: AzureImportService, staging: Staging, seed: Seed, drives: Sequence[Drive], return_address: ReturnAddress
) -> None:
    jobs.create_job(service, staging, seed, drives)
    back = ReturnShipping(carrier="DHL", account_number="9988")
    jobs.enter_shipping(
        service,
        staging,
        carrier="DHL",
        tracking_number="JD0146",
        drive_count=len(drives),
        ship_date=date(2026, 3, 2),
        return_address=return_address,
        return_shipping=back,
    )
    slip = slip_of(service, staging, seed)
    assert slip.package is not None
    assert (slip.package.tracking_number, slip.ship_until) == ("JD0146", None)
    assert (slip.return_address, slip.return_shipping) == (return_address, back)


def test_a_blank_address_is_not_printed_and_support_can_give_another(
    service: AzureImportService, staging: Staging, seed: Seed, drives: Sequence[Drive]
) -> None:
    seed = replace(seed, location="australiaeast")
    jobs.create_job(service, staging, seed, drives)
    with pytest.raises(ServiceError):
        slip_of(service, staging, seed)
    lines = ("Receiving", "6 Example Road", "Exampleton NSW")
    slip = slip_of(service, staging, seed, ship_to=lines)
    assert (slip.ship_to, slip.inbound_id) == (lines, "")
    assert slip_of(service, staging, seed, ship_to=lines, inbound_id="IN-42").inbound_id == "IN-42"
    for wrong in (lines[:2], ("a", "b", " "), ("a", "b", "c\nd"), ("a", "b", "c" * 201), lines * 4):
        with pytest.raises(UsageError):
            slip_of(service, staging, seed, ship_to=wrong)


def test_a_job_that_is_cancelled_or_gone_is_not_printed(
    service: AzureImportService, staging: Staging, seed: Seed, drives: Sequence[Drive], test_clock: TurnedClock
) -> None:
    with pytest.raises(NotFound):
        slip_of(service, staging, seed)
    jobs.create_job(service, staging, seed, drives)
    test_clock.advance(days=15)
    with pytest.raises(NotFound, match="is gone"):
        slip_of(service, staging, seed)
    jobs.create_job(service, staging, seed, drives)
    jobs.cancel_job(service, staging)
    with pytest.raises(JobConflict):
        slip_of(service, staging, seed)
