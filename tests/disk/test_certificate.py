"""The certificate of a disk: true to the journal, complete, harmless as a page, and without a secret."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import journal
from diskprep import __version__, durable
from diskprep.disk import certificate as c
from diskprep.errors import DataDamaged, FormatTooNew, JournalDamaged, NotFound, UsageError
from diskprep.seed import Seed, Staging

SERIAL = "WD-WX11A1234567"
DIGESTS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("share", "seal", "repository", "signature")}
GUID = "6f1d1b0e-97c4-4f3a-8a3d-0c9d6f1f2a10"
IDENTITY = {"serial": SERIAL, "size_bytes": 4 << 40, "job_name": "fileserver-1", "repository_id": DIGESTS["repository"]}
SEED = Seed(
    job_name="fileserver-1",
    storage_account="backups",
    container="seed-1",
    subscription_id="00000000-0000-0000-0000-000000000000",
    resource_group="rg",
    location="West Europe",
    hostname="fileserver",
    sources=("/srv",),
    repository_id=DIGESTS["repository"],
    escrow_public_key="0" * 64,
    created="2026-03-01T00:00:00Z",
)


def records(**changes: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a disk's life leaves in its journal; `changes` update the fields of a step."""
    life: list[tuple[str, dict[str, Any]]] = [
        (
            "claimed",
            {
                "share": DIGESTS["share"],
                "seal": DIGESTS["seal"],
                "signature": DIGESTS["signature"],
                "method": "xts-aes-256",
                "packs": 1000,
                "indexes": 3,
                "payload_bytes": 16_777_216_000,
                "path": "/dev/sdb",
                "model": "WDC WD40EFRX-68N32N0",
            },
        ),
        ("wiped", {"discarded": False, "how": "discard"}),
        ("formatted", {"volume_guid": GUID, "start_bytes": 1 << 20}),
        ("batch", {"files": 1003, "size_bytes": 16_777_216_000}),
        ("filled", {"files": 1003}),
        ("manifest", {"file": "\\DriveManifest.xml", "hash": "D863FE44F861AE0DA4DCEAEEFFCCCE68", "size_bytes": 99}),
        ("verified", {"files": 1003, "size_bytes": 16_777_216_000, "seconds": 100.5}),
        ("sealed", {"manifest_hash": "D863FE44F861AE0DA4DCEAEEFFCCCE68", "volume_guid": GUID}),
    ]
    return [
        (name, {"time": f"2026-03-01T0{hour}:15:30.123456Z", **fields, **changes.get(name, {})})
        for hour, (name, fields) in enumerate(life)
    ]


def in_staging(folder: Path, entries: list[tuple[str, dict[str, Any]]], serial: str = SERIAL) -> Staging:
    staging = Staging(folder / "staging")
    staging.journals.mkdir(parents=True)
    log = journal.Journal.create(staging.journals / f"{serial}.journal", IDENTITY)
    for name, fields in entries:
        log.append(name, **fields)
    log.close()
    return staging


@pytest.fixture
def made(tmp_path: Path) -> c.DiskCertificate:
    return c.certify_recorded(in_staging(tmp_path, records()), SEED, SERIAL)


def test_a_certificate_says_what_the_journal_says(made: c.DiskCertificate) -> None:
    assert asdict(made) == {
        "job_name": "fileserver-1",
        "repository_id": DIGESTS["repository"],
        "container": "seed-1",
        "serial": SERIAL,
        "model": "WDC WD40EFRX-68N32N0",
        "size_bytes": 4 << 40,
        "volume_guid": GUID,
        "method": "xts-aes-256",
        "packs": 1000,
        "index_files": 3,
        "files_bytes": 16_777_216_000,
        "files_digest": DIGESTS["share"],
        "manifest_file": "\\DriveManifest.xml",
        "manifest_hash": "D863FE44F861AE0DA4DCEAEEFFCCCE68",
        "seal_digest": DIGESTS["seal"],
        "claimed": "2026-03-01T00:15:30.123456Z",
        "formatted": "2026-03-01T02:15:30.123456Z",
        "filled": "2026-03-01T04:15:30.123456Z",
        "verified": "2026-03-01T06:15:30.123456Z",
        "sealed": "2026-03-01T07:15:30.123456Z",
        "read_back": {"files": 1003, "size_bytes": 16_777_216_000, "seconds": 100.5},
        "program": f"diskprep {__version__}",
    }
    assert made.read_back.bytes_per_second == 166_937_473


def test_what_an_earlier_attempt_recorded_does_not_count(tmp_path: Path, made: c.DiskCertificate) -> None:
    other = {"volume_guid": "00000000-0000-0000-0000-000000000000", "time": "2025-01-01T00:00:00Z"}
    earlier = records(formatted=other)[:-1]
    assert c.certify_recorded(in_staging(tmp_path / "again", [*earlier, *records()]), SEED, SERIAL) == made


def test_the_journal_of_an_earlier_version_gives_a_certificate_too(tmp_path: Path) -> None:
    entries = records(claimed={"packs": 1003})
    del entries[0][1]["model"], entries[0][1]["indexes"], entries[6][1]["seconds"]
    found = c.certify_recorded(in_staging(tmp_path, entries), SEED, SERIAL)
    assert (found.model, found.index_files, found.read_back.seconds) == ("", 0, None)
    assert found.read_back.bytes_per_second is None
    assert c.render_html(found).count("not measured") == 2


@pytest.mark.parametrize("left", range(8))
def test_a_disk_that_is_not_sealed_gets_none(tmp_path: Path, left: int) -> None:
    with pytest.raises(NotFound, match="not sealed"):
        c.certify_recorded(in_staging(tmp_path, records()[:left]), SEED, SERIAL)


@pytest.mark.parametrize(
    ("step", "fields"),
    [
        ("verified", {"files": 1002}),
        ("verified", {"files": 1004}),
        ("verified", {"size_bytes": 16_777_215_999}),
        ("verified", {"size_bytes": "many"}),
        ("claimed", {"packs": 999}),
        ("claimed", {"payload_bytes": 0}),
        ("filled", {"time": "yesterday"}),
        ("sealed", {"time": "2026-03-01T07:15:30"}),
    ],
)
def test_a_journal_that_contradicts_itself_gives_none(tmp_path: Path, step: str, fields: dict[str, Any]) -> None:
    with pytest.raises(DataDamaged):
        c.certify_recorded(in_staging(tmp_path, records(**{step: fields})), SEED, SERIAL)


@pytest.mark.parametrize("missing", ["claimed", "filled", "verified"])
def test_a_journal_without_a_step_gives_none(tmp_path: Path, missing: str) -> None:
    entries = [entry for entry in records() if entry[0] != missing]
    with pytest.raises((DataDamaged, JournalDamaged)):
        c.certify_recorded(in_staging(tmp_path, entries), SEED, SERIAL)


def test_without_a_journal_or_with_a_damaged_or_foreign_one_there_is_none(tmp_path: Path) -> None:
    staging = in_staging(tmp_path, records(), "ANOTHER-NAME")
    with pytest.raises(NotFound):
        c.certify_recorded(staging, SEED, SERIAL)
    with pytest.raises(DataDamaged, match="journal of disk"):
        c.certify_recorded(staging, SEED, "ANOTHER-NAME")
    with pytest.raises(UsageError):
        c.certify_recorded(staging, SEED, "../seed")
    path = staging.journals / "ANOTHER-NAME.journal"
    data = bytearray(path.read_bytes())
    data[13_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        c.certify_recorded(staging, SEED, "ANOTHER-NAME")


def test_what_is_written_is_read_back(tmp_path: Path, made: c.DiskCertificate) -> None:
    written, page = c.save(made, tmp_path / "out")
    assert (written.name, page.name) == (f"disk-{SERIAL}.json", f"disk-{SERIAL}.html")
    assert c.load(written) == made
    assert page.read_text() == c.render_html(made)
    assert [path.stat().st_mode & 0o777 for path in (written, page)] == [0o644, 0o644]


def test_where_there_is_json_there_is_a_page(
    tmp_path: Path, made: c.DiskCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write_file(path: Path, _data: bytes, *, mode: int) -> None:
        assert mode == 0o644
        written.append(path.suffix)

    monkeypatch.setattr(durable, "write_file", write_file)
    c.save(made, tmp_path / "out")
    assert written == [".html", ".json"]


def test_the_digest_is_what_anybody_can_compute(tmp_path: Path, made: c.DiskCertificate) -> None:
    document = json.loads(c.save(made, tmp_path)[0].read_bytes())
    digest = document.pop("digest")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest == made.digest
    assert digest in c.render_html(made)


def test_every_changed_field_is_noticed(tmp_path: Path, made: c.DiskCertificate) -> None:
    path = c.save(made, tmp_path)[0]
    document = json.loads(path.read_bytes())
    for name, value in document.items():
        changed: object = {"str": f"{value}0", "int": value + 1 if isinstance(value, int) else 0}.get(
            type(value).__name__, {**made.document()["read_back"], "seconds": 1.0}
        )
        path.write_text(json.dumps({**document, name: changed}))
        with pytest.raises((DataDamaged, FormatTooNew)):
            c.load(path)
    for odd in ("[]", "{}", "{", json.dumps({**document, "more": 1}), json.dumps({**document, "read_back": None})):
        path.write_text(odd)
        with pytest.raises(DataDamaged):
            c.load(path)


def test_a_certificate_with_a_good_digest_must_still_make_sense(tmp_path: Path, made: c.DiskCertificate) -> None:
    path = c.save(made, tmp_path)[0]
    document = json.loads(path.read_bytes())
    del document["digest"]
    for change in ({"packs": "1000"}, {"size_bytes": None}, {"serial": "../x"}, {"sealed": 5}, {"packs": True}):
        forged = {**document, **change}
        digest = hashlib.sha256(json.dumps(forged, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        path.write_text(json.dumps({**forged, "digest": digest}))
        with pytest.raises(DataDamaged):
            c.load(path)


def test_two_versions_of_the_program_say_the_same(made: c.DiskCertificate) -> None:
    assert c.same(made, replace(made, program="diskprep 99"))
    assert not c.same(made, replace(made, model="another"))


class _Page(HTMLParser):
    """Collects what a page shows and what it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_page_shows_what_the_certificate_says(made: c.DiskCertificate) -> None:
    page = _Page(c.render_html(made))
    for name, value in asdict(made).items():
        if isinstance(value, str) and name not in ("claimed", "formatted", "filled", "verified", "sealed", "method"):
            assert value in page.shown, name
    for text in ("XTS-AES-256", "1,000 packs and 3 index files", "16,777,216,000", "100.5 s", "166.9 MB/s"):
        assert text in page.shown
    assert "2026-03-01 07:15:30" in page.shown


def test_the_page_stands_alone_and_runs_nothing(made: c.DiskCertificate) -> None:
    text = c.render_html(made)
    page = _Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "a", "form", "base"}
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href", "onload", "style"}
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert "default-src 'none'" in text


def test_nothing_from_a_disk_or_a_job_can_become_markup(made: c.DiskCertificate) -> None:
    for nasty in ("<script>alert(1)</script>", '"><img src=x onerror=a>', "&lt;", "\u202e\x1b[2Jx\n\udc80", "{rows}"):
        plain = _Page(c.render_html(made))
        page = _Page(c.render_html(replace(made, model=nasty, job_name=nasty, container=nasty, method=nasty)))
        assert page.tags == plain.tags
        assert not re.search("[\u202e\x1b\udc80]", page.shown)
        c.render_html(made).encode()
    assert "<script>alert(1)</script>" in _Page(c.render_html(replace(made, model="<script>alert(1)</script>"))).shown
    assert "{rows}" in _Page(c.render_html(replace(made, model="{rows}"))).shown


def test_no_secret_has_a_place_in_it(tmp_path: Path) -> None:
    leaky = records(claimed={"recovery_password": "111111-222222"}, sealed={"sas": "sig=secret"})
    found = c.certify_recorded(in_staging(tmp_path, leaky), SEED, SERIAL)
    text = json.dumps(found.document()) + c.render_html(found)
    assert not re.search(f"111111|sig=|{DIGESTS['signature']}", text)
