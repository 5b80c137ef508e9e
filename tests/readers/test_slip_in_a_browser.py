"""The papers of a package as people have them: in a browser, printed, and before a scanner."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from slips import HOSTILE, make_slip, shipped, with_text
from support import diskprep, diskprep_json, make_tree, need, run

from diskprep.datacenter.server import Datacenter
from diskprep.importjob import paper
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount

PAPERS = ("A4", "letter")
CANARY = "canary"


class Browser:
    """Headless Chromium with a profile of its own, which asks nobody anything by itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = need("chromium")

    def save(self, html: str) -> Path:
        page = self._folder / "page.html"
        page.write_text(html)
        return page

    def start(self, page: Path, *options: str) -> str:
        return run(
            self._program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            f"--user-data-dir={self._folder / 'profile'}",
            *options,
            page.as_uri(),
        )

    def codes_on_screen(self, html: str) -> list[str]:
        """What a scanner reads from a picture of the whole page."""
        picture = self._folder / "page.png"
        size = ("--window-size=800,4200", "--force-device-scale-factor=2", "--hide-scrollbars")
        self.start(self.save(html), *size, f"--screenshot={picture}")
        return scan(picture)

    def printed(self, html: str, size: str) -> Path:
        """The page as PDF on paper of this size, as the browser's own dialogue would print it."""
        assert html.count("@page {") == 1
        pdf = self._folder / "page.pdf"
        page = self.save(html.replace("@page {", f"@page {{ size: {size};"))
        self.start(page, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
        return pdf


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


def scan(*pictures: Path) -> list[str]:
    """The text of all QR codes in pictures, sorted."""
    found = []
    for picture in pictures:
        told = run(need("zbarimg"), "--quiet", "--xml", "--nodbus", "-Sdisable", "-Sqrcode.enable", picture, ok=False)
        found += re.findall(r"<data><!\[CDATA\[(.*?)\]\]></data>", told, re.DOTALL)
    return sorted(found)


def sheets(pdf: Path) -> list[str]:
    """The text of each page, white space evened out."""
    text = run(need("pdftotext"), "-layout", pdf, "-")
    return [" ".join(sheet.split()) for sheet in text.split("\f")[:-1]]


def expected_codes(slip: paper.Slip) -> list[str]:
    return sorted([paper.slip_text(slip), *(paper.label_text(slip, number) for number in range(len(slip.disks)))])


@pytest.mark.parametrize("count", [1, 10])
def test_a_scanner_reads_the_codes_from_the_screen(browser: Browser, count: int) -> None:
    slip = make_slip(count)
    assert browser.codes_on_screen(paper.packing_slip(slip)) == expected_codes(slip)


def test_a_scanner_reads_the_codes_from_paper(browser: Browser, tmp_path: Path) -> None:
    slip = make_slip(10)
    pdf = browser.printed(paper.packing_slip(slip), "A4")
    run(need("pdftoppm"), "-r", "200", "-gray", "-png", pdf, tmp_path / "sheet")
    assert scan(*sorted(tmp_path.glob("sheet*.png"))) == expected_codes(slip)


@pytest.mark.parametrize("size", PAPERS)
@pytest.mark.parametrize("slip", [make_slip(1), make_slip(10), shipped(make_slip(10))], ids=["1", "10", "10 shipped"])
def test_each_part_is_one_sheet_on_each_paper(browser: Browser, slip: paper.Slip, size: str) -> None:
    pdf = browser.printed(paper.packing_slip(slip), size)
    assert size.upper() in run(need("pdfinfo"), pdf).upper()
    packing, shipper, labels = sheets(pdf)
    count = len(slip.disks)
    for sheet in (packing, shipper, labels):
        assert "import job first-backup" in sheet
    for number, disk in enumerate(slip.disks, 1):
        assert f"Disk {number} of {count} {disk.serial} {disk.model} 4.0 TB" in packing
        assert f"Disk {number} of {count}" in labels
        assert disk.serial in labels
    assert "This sheet travels in the package" in packing
    assert all(f"Sentence {number}:" in shipper for number in range(len(slip.checklist)))
    assert "Packed by" in shipper
    if slip.package:
        assert slip.package.tracking_number in packing
        assert slip.package.tracking_number in shipper
    else:
        assert "15 March 2026, 11:59 UTC" in packing
        assert "Sunday 15 March 2026, 11:59 UTC" in shipper


def test_nothing_is_lost_of_an_address_of_any_length_and_script(browser: Browser) -> None:
    lines = (
        "Please write the inbound ID on each side of the package " * 3,
        "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
        "Łódź, Ærøskøbing, İstanbul, Ξάνθη, Владивосток",
        "X" * 150,
    )
    found = sheets(browser.printed(paper.packing_slip(make_slip(10, ship_to=lines)), "A4"))
    packing = "".join(" ".join(found[:-2]).split())
    for line in lines:
        address = packing.replace("".join(paper.slip_text(make_slip()).split()), "")
        assert "".join(line.split()) in address
    assert "Disk10of10" in packing


def test_long_serial_numbers_stay_inside_their_labels(browser: Browser) -> None:
    disks = tuple(
        paper.SlipDisk(serial=f"{number}" * 64, model="Model of a long name", size_bytes=1) for number in range(9)
    )
    *_, labels = sheets(browser.printed(paper.packing_slip(make_slip(disks=disks)), "letter"))
    assert "".join(labels.split()).count("westeurope") == len(disks)


def test_what_comes_from_outside_cannot_act(browser: Browser) -> None:
    html = paper.packing_slip(with_text(" ".join(HOSTILE[:4])))
    assert "<title>Import job first-backup: packing slip</title>" in browser.start(browser.save(html), "--dump-dom")
    owned = "<!DOCTYPE html><title>tame</title><p>" + HOSTILE[0]
    assert "<title>owned</title>" in browser.start(browser.save(owned), "--dump-dom")  # or the above says nothing


def test_the_page_asks_the_network_for_nothing(browser: Browser) -> None:
    with recording_proxy() as (options, asked):
        html = paper.packing_slip(with_text(" ".join(HOSTILE[:4])))
        browser.start(browser.save(html), *options, "--dump-dom")
        assert by_the_page(asked) == []
        browser.start(browser.save("<!DOCTYPE html><img src=http://canary.invalid/x>"), *options, "--dump-dom")
        assert by_the_page(asked) == ["http://canary.invalid/x"]  # or the above says nothing


def by_the_page(asked: Sequence[str]) -> list[str]:
    """Without what the browser asks its maker whatever it shows: no other host than this one is named in the page."""
    return sorted({url for url in asked if "canary.invalid" in url})


@contextmanager
def recording_proxy() -> Iterator[tuple[Sequence[str], list[str]]]:
    """A proxy that refuses all; options that make the browser use it for everything, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield (f"--proxy-server=http://127.0.0.1:{server.server_port}", "--proxy-bypass-list=<-loopback>"), asked
        server.shutdown()


def test_no_secret_of_the_whole_way_is_on_paper(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was really prepared, its job in the stand-in, and the command as an operator types it."""
    monkeypatch.setenv("DISKPREP_STATE", str(tmp_path / "state"))
    staging, serial = tmp_path / "staging", "WD-SLIP1"
    secrets = {
        "passphrase": f"{CANARY} passphrase, long enough",
        "container.sas": f"imported?sv=2020-02-10&se=2099-01-01T00%3A00%3A00Z&sp=rwdl&sig={CANARY}-signature",
        "token": f"{CANARY}-token",
    }
    for name, secret in secrets.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    with_passphrase = ("--passphrase-file", tmp_path / "passphrase")
    trip = ("--job", "paper-job", "--storage-account", "account1", "--container", "imported")
    azure = ("--subscription", "11111111-2222-4333-8444-555555555555", "--resource-group", "group")
    source = make_tree(tmp_path / "source", megabytes=1)
    diskprep("stage", source, "--staging", staging, *trip, *azure, "--location", "northeurope", *with_passphrase)
    sas = ("--container-sas-file", tmp_path / "container.sas", "--journals", tmp_path / "journals")
    diskprep("disk", "prepare", staging, tmp_path / f"{serial}.img", *sas, "--image-size", "128M", "--quiet")
    password = diskprep("disk", "key", serial, "--staging", staging, *with_passphrase)[0].strip()
    assert re.fullmatch(r"\d{6}(-\d{6}){7}", password)
    account = DirectoryAccount("account1", tmp_path / "account", Secret(b"k" * 32))
    with Datacenter(tmp_path / "state.sqlite", account, token=Secret(secrets["token"])) as datacenter:
        service = ("--endpoint", datacenter.base_url, "--token-file", tmp_path / "token")
        diskprep("job", "create", staging, *service, *with_passphrase)
        command = ("job", "slip", staging, *service, "--to", tmp_path / "paper.html")
        out, err = diskprep(*command)
        document = diskprep_json(*command)
    html = (tmp_path / "paper.html").read_text()
    for text in (html, out, err, json.dumps(document)):
        assert CANARY not in text
        assert not re.search(r"\d{6}-\d{6}", text)
        assert password not in text
    codes = browser.codes_on_screen(html)
    assert codes == sorted([document["qr_code"], *document["label_qr_codes"]])
    assert document["qr_code"] == f"diskprep 1\njob paper-job\nregion northeurope\ndisk 1/1 {serial}"
    assert document["disks"] == [{"serial": serial, "model": "", "size_bytes": 128 << 20}]
    assert document["ship_to_region"] == "westeurope"
    assert "Voorbeeldam" in html
    assert out.splitlines()[-1] == str(tmp_path / "paper.html")
