"""The certificate of one disk: what it was prepared from, what is on it, and that all of it was read back.

It is made of what the disk's journal says, so it can be made again at any time, and says the same. No secret is in it.
JSON is the certificate; the page is for people, and carries the same digest. Format: docs/formats/disk-certificate.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import Any

import journal
from diskprep import __version__, clock, durable
from diskprep.disk import keys, record
from diskprep.errors import DataDamaged, FormatTooNew, JournalDamaged, NotFound
from diskprep.seed import Seed, Staging

FORMAT = "diskprep-disk-certificate"
VERSION = 1
MODE = 0o644  # it is made to be shown
_SIZE_LIMIT_BYTES = 1 << 20
#: The journal's records that a certificate names with their times.
_STEPS = ("claimed", "formatted", "filled", "verified", "sealed")
#: What a field of more than one kind may hold.
_KINDS = {"float | None": ("float", "int", "NoneType")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBackResult:
    """What was read through a fresh open with the recovery password alone. `seconds` is None when nobody measured."""

    files: int
    size_bytes: int
    seconds: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)

    @property
    def bytes_per_second(self) -> int | None:
        return round(self.size_bytes / self.seconds) if self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCertificate:
    """All times are RFC 3339 in UTC, all digests in hex. `files_digest`: record.share_digest, SHA-256 over the files'
    names, each of which is the SHA-256 of a file's content. `files_bytes` is without the manifest and the file system.
    `model` may be empty.
    """

    job_name: str
    repository_id: str
    container: str
    serial: str
    model: str = ""
    size_bytes: int
    volume_guid: str
    method: str
    packs: int
    index_files: int
    files_bytes: int
    files_digest: str
    manifest_file: str
    manifest_hash: str
    seal_digest: str
    claimed: str
    formatted: str
    filled: str
    verified: str
    sealed: str
    read_back: ReadBackResult
    program: str = f"diskprep {__version__}"

    def __post_init__(self) -> None:
        """Raises DataDamaged: nothing is certified of which less, or more, was read back than was written."""
        _check_types(self)
        if not keys.SERIAL.fullmatch(self.serial):
            raise DataDamaged(f"{self.serial!a} cannot be a disk's serial number")
        found = self.read_back
        if (found.files, found.size_bytes) != (self.files, self.files_bytes):
            raise DataDamaged(
                f"disk {self.serial} should hold {self.files} files of {self.files_bytes} bytes; "
                f"{found.files} of {found.size_bytes} were read back",
                hint="prepare this disk again",
            )
        try:
            for step in _STEPS:
                clock.parse_rfc3339(getattr(self, step))
        except ValueError:
            raise DataDamaged(f"the certificate of disk {self.serial} has no proper time {step!r}") from None

    @property
    def files(self) -> int:
        return self.packs + self.index_files

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the certificate's canonical form: JSON without its digest, keys sorted, no white space."""
        text = json.dumps(_content(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def document(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {**_content(self), "digest": self.digest}


def certify(seed: Seed, identity: Mapping[str, Any], records: Sequence[journal.Record]) -> DiskCertificate:
    """The certificate of the disk that a journal describes, by its last record of each type.

    Raises NotFound when it is not sealed, DataDamaged when its records contradict each other.
    """
    serial = identity.get("serial")
    last = {entry.type: entry.fields for entry in records}
    try:
        disk = record.sealed_disk(identity, records)
        if disk is None:
            raise NotFound(
                f"disk {serial} is not sealed, so there is nothing to certify",
                hint="give the same `diskprep disk prepare` command again",
            )
        claimed, verified = last["claimed"], last["verified"]
        seconds = verified.get("seconds")
        return DiskCertificate(
            job_name=str(identity["job_name"]),
            repository_id=str(identity["repository_id"]),
            container=seed.container,
            serial=disk.serial,
            model=str(claimed.get("model", "")),
            size_bytes=disk.size_bytes,
            volume_guid=disk.volume_guid,
            method=str(claimed["method"]),
            packs=int(claimed["packs"]),
            index_files=int(claimed.get("indexes", 0)),
            files_bytes=disk.payload_bytes,
            files_digest=disk.share,
            manifest_file=disk.manifest_file,
            manifest_hash=disk.manifest_hash,
            seal_digest=disk.seal,
            read_back=ReadBackResult(
                files=int(verified["files"]),
                size_bytes=int(verified["size_bytes"]),
                seconds=None if seconds is None else float(seconds),
            ),
            **{step: str(last[step]["time"]) for step in _STEPS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataDamaged(f"the journal of disk {serial} lacks what a certificate needs: {error}") from None


def certify_recorded(staging: Staging, seed: Seed, serial: str) -> DiskCertificate:
    """`certify` for a disk whose journal is mirrored in the staging. Raises NotFound, JournalDamaged, DataDamaged."""
    path = staging.journals / f"{keys.check_serial(serial)}.journal"
    if not durable.exists(path):
        raise NotFound(f"the staging has no journal of disk {serial}", hint="prepare the disk first")
    try:
        identity, *records = journal.read(path)
    except journal.JournalDamaged as error:
        raise JournalDamaged(str(error), hint="use the copy computer's own journal of this disk") from error
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error
    made = certify(seed, identity.fields, records)
    if made.serial != serial:
        raise DataDamaged(f"{path} is the journal of disk {made.serial}")
    return made


def folder(staging: Staging) -> Path:
    """Where a staging keeps its disks' certificates."""
    return staging.root / "certificates"


def file_names(serial: str) -> tuple[str, str]:
    """The certificate as JSON, and its page."""
    name = f"disk-{keys.check_serial(serial)}"
    return f"{name}.json", f"{name}.html"


def save(certificate: DiskCertificate, directory: Path) -> tuple[Path, Path]:
    """Write the certificate durably, the page first: where there is JSON, there are both. Returns both paths.

    Raises StorageFull or StorageUnavailable.
    """
    durable.make_directory(directory)
    written, page = (directory / name for name in file_names(certificate.serial))
    durable.write_file(page, render_html(certificate).encode(), mode=MODE)
    text = json.dumps(certificate.document(), indent=2, sort_keys=True) + "\n"
    durable.write_file(written, text.encode("ascii"), mode=MODE)
    return written, page


def load(path: Path) -> DiskCertificate:
    """Read a certificate and check its digest. Raises NotFound, StorageUnavailable, DataDamaged or FormatTooNew."""
    return _parse(durable.read_json(path, limit_bytes=_SIZE_LIMIT_BYTES), str(path))


def same(one: DiskCertificate, other: DiskCertificate) -> bool:
    """Whether two certificates say the same of a disk, whichever version of the program wrote them."""
    return replace(one, program="") == replace(other, program="")


def _content(certificate: DiskCertificate) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, **asdict(certificate)}


def _check_types(value: DiskCertificate | ReadBackResult) -> None:
    """A certificate may come from a file that somebody made."""
    for field in fields(value):
        kind = str(field.type)
        if type(getattr(value, field.name)).__name__ not in _KINDS.get(kind, (kind,)):
            raise DataDamaged(f"a certificate's {field.name} is of the wrong kind")


def _parse(document: dict[str, Any], where: str) -> DiskCertificate:
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{where} is not the certificate of a disk")
    if document.pop("version", None) != VERSION:
        raise FormatTooNew(f"{where} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    digest = document.pop("digest", None)
    try:
        found = DiskCertificate(read_back=ReadBackResult(**document.pop("read_back")), **document)
        matches = found.digest == digest
    except (TypeError, ValueError, KeyError):
        matches = False
    if not matches:
        raise DataDamaged(
            f"{where} is damaged or was edited: its digest does not match",
            hint="make it again: diskprep disk certificate SERIAL --staging DIR",
        )
    return found


def render_html(certificate: DiskCertificate) -> str:
    """The certificate as one page without scripts or anything from elsewhere; black on white, for A4 and Letter."""
    rows = "".join(
        f'<tbody><tr><th colspan="2" scope="rowgroup">{heading}</th></tr>\n'
        + "".join(f'<tr><th scope="row">{name}</th><td>{_shown(value)}</td></tr>\n' for name, value in values)
        + "</tbody>\n"
        for heading, values in _sections(certificate)
    )
    json_name = file_names(certificate.serial)[0]
    return _PAGE.format(serial=_shown(certificate.serial), rows=rows, json_name=_shown(json_name))


def _sections(certificate: DiskCertificate) -> list[tuple[str, list[tuple[str, str]]]]:
    back = certificate.read_back
    rate = back.bytes_per_second
    return [
        (
            "Disk",
            [
                ("Serial number", certificate.serial),
                ("Model", certificate.model or "not known"),
                ("Size", _bytes(certificate.size_bytes)),
                ("Volume", certificate.volume_guid),
                ("Encryption", f"BitLocker, {certificate.method.upper()}, one recovery password"),
            ],
        ),
        (
            "Content",
            [
                ("Job", certificate.job_name),
                ("Repository", certificate.repository_id),
                ("Goes to container", certificate.container),
                ("Files", f"{certificate.packs:,} packs and {certificate.index_files:,} index files"),
                ("Their bytes", _bytes(certificate.files_bytes)),
                ("SHA-256 over all files", certificate.files_digest),
                ("SHA-256 of the seal", certificate.seal_digest),
                ("Manifest", certificate.manifest_file),
                ("MD5 of the manifest", certificate.manifest_hash),
            ],
        ),
        (
            "Read back",
            [
                ("Files, as written", f"{back.files:,}"),
                ("Bytes, as written", _bytes(back.size_bytes)),
                ("Files that differ", "0"),
                ("Time", "not measured" if back.seconds is None else f"{back.seconds:,.1f} s"),
                ("Rate", "not measured" if rate is None else f"{rate / 1e6:,.1f} MB/s"),
            ],
        ),
        (
            "Times (UTC)",
            [
                ("Claimed", _moment(certificate.claimed)),
                ("Encrypted and formatted", _moment(certificate.formatted)),
                ("All files copied", _moment(certificate.filled)),
                ("All files read back", _moment(certificate.verified)),
                ("Sealed", _moment(certificate.sealed)),
            ],
        ),
        ("This certificate", [("Written by", certificate.program), ("SHA-256", certificate.digest)]),
    ]


def _shown(text: str) -> str:
    """`text` for the page; what is no printable character stands as an escape."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _bytes(count: int) -> str:
    return f"{count:,} ({count / 1e9:,.3f} GB)"


def _moment(text: str) -> str:
    return f"{clock.parse_rfc3339(text):%Y-%m-%d %H:%M:%S}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Disk {serial}: certificate</title>
<style>
@page {{ margin: 14mm; }}
:root {{ color-scheme: light; }}
body {{ color: #000; background: #fff; font: 10pt/1.25 sans-serif; max-width: 180mm; margin: 8mm auto; }}
h1 {{ font-size: 16pt; margin: 0 0 3mm; }}
p {{ margin: 0 0 3mm; }}
table {{ width: 100%; border-collapse: collapse; }}
tbody {{ break-inside: avoid; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.4mm 2mm 0.4mm 0; border-bottom: 0.1mm solid #000; }}
th[scope=row] {{ width: 48mm; font-weight: normal; }}
th[scope=rowgroup] {{ font-size: 11pt; padding-top: 2.5mm; border-bottom-width: 0.4mm; }}
td {{ font-family: monospace; font-size: 9pt; overflow-wrap: anywhere; }}
.small {{ font-size: 9pt; margin-top: 3mm; }}
.signed {{ margin-top: 11mm; display: flex; gap: 10mm; }}
.signed span {{ flex: 1; border-top: 0.2mm solid #000; padding-top: 1mm; font-size: 9pt; }}
@media print {{ body {{ margin: 0; max-width: none; }} }}
</style>
</head>
<body>
<h1>Certificate of disk {serial}</h1>
<p>The disk was encrypted and filled, and then read back through a fresh open with its recovery password alone. Every
block had the MD5 that the manifest names, every file the SHA-256 that is its name, and no other file was on it.</p>
<table>
{rows}</table>
<p class="small">The SHA-256 of this certificate is over {json_name} without its <code>digest</code>, keys sorted and
without white space. It shows damage and careless edits; a signature it is not.</p>
<div class="signed"><span>Checked by</span><span>Date</span></div>
</body>
</html>
"""
