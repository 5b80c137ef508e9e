"""What goes to paper: the packing slip of an import job, the page that stays with the shipper, and the disks' labels.

One HTML page, in three parts that are printed on a sheet each. It has no script and nothing from elsewhere, and prints
on A4 and Letter. Invariants: no value here can hold a secret; whatever a name or an address contains is shown as text.
The QR codes' text is described in docs/reference/paper.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, date, datetime
from html import escape
from typing import Any

import segno

from diskprep import clock
from diskprep.errors import DataDamaged
from diskprep.exchange.manifest import check_drive_id
from diskprep.importjob.model import DRIVES_LIMIT, Address, Package, ReturnAddress, ReturnShipping
from diskprep.importjob.shipping import is_same_region
from diskprep.seed import JOB_NAME

#: The first line of every QR code.
QR_FORMAT = "diskprep 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlipDisk:
    """A disk in the package. `model` may be empty and `size_bytes` 0: then they are not known."""

    serial: str
    model: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """All that is printed. `region` is the job's, `ship_to_region` the one whose datacenter takes its packages now.

    `ship_to`: the lines of its address. `made`: as of when all this is true. `ship_until`: until when the tracking
    number must be entered, or None when no clock runs. `inbound_id`: None where the region asks for none, empty when it
    is still to be written by hand. `checklist`: sentences, each of which gets a box to tick.
    Raises DataDamaged when made of what cannot be a job.
    """

    job_name: str
    region: str
    ship_to: tuple[str, ...]
    ship_to_region: str
    disks: tuple[SlipDisk, ...]
    made: datetime
    ship_until: datetime | None = None
    package: Package | None = None
    return_address: ReturnAddress | None = None
    return_shipping: ReturnShipping | None = None
    inbound_id: str | None = None
    checklist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not JOB_NAME.fullmatch(self.job_name):
            raise DataDamaged(f"{self.job_name!a} is not a job's name")
        if not 1 <= len(self.disks) <= DRIVES_LIMIT:
            raise DataDamaged(f"{len(self.disks)} disks; an import job has 1 to {DRIVES_LIMIT}")
        if not any(line.strip() for line in self.ship_to):
            raise DataDamaged(f"import job {self.job_name} has no address to ship to")
        serials = [check_drive_id(disk.serial) for disk in self.disks]
        if len(set(serials)) < len(serials):
            raise DataDamaged(f"import job {self.job_name} names a disk twice")


def address_lines(address: Address) -> tuple[str, ...]:
    """What stands on a package, a line each; fields that are empty make none."""
    *lines, phone = astuple(address)
    return tuple(line for line in (*lines, phone and f"Phone {phone}") if line.strip())


def file_name(job_name: str) -> str:
    """Where the papers of a job are written when nobody says where."""
    return f"{job_name}-slip.html"


def slip_text(slip: Slip) -> str:
    """What the packing slip's QR code says: the job, its region, and every disk."""
    return "\n".join([*_qr_head(slip), *(_qr_disk(slip, number) for number in range(len(slip.disks)))])


def label_text(slip: Slip, number: int) -> str:
    """What the QR code on the label of disk `number`, counted from 0, says."""
    return "\n".join([*_qr_head(slip), _qr_disk(slip, number)])


def document(slip: Slip) -> dict[str, Any]:
    """The slip's fields as JSON has them. Times are RFC 3339 in UTC, dates YYYY-MM-DD."""
    fields = asdict(slip)
    for name in ("made", "ship_until"):
        if fields[name] is not None:
            fields[name] = clock.rfc3339(fields[name])
    if fields["package"] and fields["package"]["ship_date"]:
        fields["package"]["ship_date"] = fields["package"]["ship_date"].isoformat()
    labels = [label_text(slip, number) for number in range(len(slip.disks))]
    return {**fields, "qr_code": slip_text(slip), "label_qr_codes": labels}


def packing_slip(slip: Slip) -> str:
    """The page: the packing slip, the shipper's sheet, the labels. Black on white."""
    return _PAGE.format(
        job=_shown(slip.job_name),
        slip=_slip_sheet(slip),
        shipper=_shipper_sheet(slip),
        labels=_label_sheet(slip),
    )


# --- the three sheets


def _slip_sheet(slip: Slip) -> str:
    count = len(slip.disks)
    rows = "".join(
        f'<tr><td class="box"></td><td>Disk {number} of {count}</td><td class="code">{_shown(disk.serial)}</td>'
        f"<td>{_shown(disk.model) or 'not known'}</td><td>{_size(disk.size_bytes)}</td></tr>\n"
        for number, disk in enumerate(slip.disks, 1)
    )
    via = (
        ""
        if is_same_region(slip.region, slip.ship_to_region)
        else f'<p class="small">for region {_shown(slip.region)}</p>'
    )
    return _SLIP.format(
        job=_shown(slip.job_name),
        address=_lines(slip.ship_to),
        length="long" if sum(map(len, slip.ship_to)) > _LONG_ADDRESS_CHARS else "short",
        via=via,
        qr=_qr(slip_text(slip), f"import job {slip.job_name}, region and serial numbers"),
        facts=_facts(slip),
        disks="1 disk" if count == 1 else f"{count} disks",
        rows=rows,
        returns=_returns(slip),
        account=_account(slip),
        made=_moment(slip.made),
    )


def _shipper_sheet(slip: Slip) -> str:
    return _SHIPPER.format(
        job=_shown(slip.job_name),
        deadline=_deadline(slip),
        number="" if slip.package else "<span>Tracking number</span>",
        checks="".join(f'<li><span class="box"></span>{_shown(line)}</li>\n' for line in slip.checklist),
    )


def _label_sheet(slip: Slip) -> str:
    count = len(slip.disks)
    labels = "".join(
        _LABEL.format(
            job=_shown(slip.job_name),
            number=number,
            count=count,
            serial=_shown(disk.serial),
            length="long" if len(disk.serial) > _LONG_SERIAL_CHARS else "short",
            model=_shown(disk.model),
            size=_size(disk.size_bytes, ""),
            region=_shown(slip.region),
            qr=_qr(label_text(slip, number - 1), f"import job {slip.job_name}, disk {disk.serial}"),
        )
        for number, disk in enumerate(slip.disks, 1)
    )
    return _LABELS.format(job=_shown(slip.job_name), labels=labels)


# --- their parts


def _facts(slip: Slip) -> str:
    """What the datacenter and the carrier need, two facts a row; lines where something is still to be written."""
    package = slip.package
    facts = [
        ("Import job", _code(slip.job_name)),
        ("Region", _code(slip.region)),
        ("Carrier", _shown(package.carrier) if package else _LINE),
        ("Tracking number", _code(package.tracking_number) if package else _LINE),
    ]
    if slip.inbound_id is not None:
        facts.append(("Inbound ID", _code(slip.inbound_id) if slip.inbound_id.strip() else _LINE))
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in facts)
    if package and package.ship_date:
        rows += f'<div class="right"><dt>Shipped</dt><dd>{_day(package.ship_date)}</dd></div>\n'
    if slip.ship_until:
        rows += f'<div class="right"><dt>To be entered before</dt><dd>{_moment(slip.ship_until)}</dd></div>\n'
    return rows


def _returns(slip: Slip) -> str:
    if slip.return_address is None:
        return "<p>Not entered yet; the job needs one before the package is sent.</p>"
    *lines, phone, email = astuple(slip.return_address)
    reach = ", ".join(text for text in (phone, email) if text.strip())
    return f'<address>{_lines(lines)}</address><p class="small">{_shown(reach)}</p>'


def _account(slip: Slip) -> str:
    if slip.return_shipping is None:
        return "<p>Not entered yet.</p>"
    return f"<p>{_shown(slip.return_shipping.carrier)}<br>{_code(slip.return_shipping.account_number)}</p>"


def _deadline(slip: Slip) -> str:
    if slip.package is not None:
        return _ENTERED.format(carrier=_shown(slip.package.carrier), number=_code(slip.package.tracking_number))
    if slip.ship_until is None:
        return '<p class="deadline">No tracking number has been entered yet.</p>'
    return _DEADLINE.format(day=f"{slip.ship_until.astimezone(UTC):%A}", moment=_moment(slip.ship_until))


def _code(text: str) -> str:
    return f'<span class="code">{_shown(text)}</span>'


def _lines(lines: Sequence[str]) -> str:
    """An address, without the lines that are empty; each is set by itself, whichever way its script runs."""
    return "".join(f'<span class="line" dir="auto">{_shown(line)}</span>' for line in lines if line.strip())


def _qr(text: str, says: str) -> str:
    """A QR code as SVG inside the page, with its quiet zone. Level M: a seventh of it may be unreadable."""
    drawn = segno.make_qr(text, error="m", encoding="utf-8" if not text.isascii() else None)
    return f'<div class="qr" role="img" aria-label="QR code: {_shown(says)}">{drawn.svg_inline(omitsize=True)}</div>'


def _qr_head(slip: Slip) -> list[str]:
    return [QR_FORMAT, f"job {slip.job_name}", f"region {_plain(slip.region)}"]


def _qr_disk(slip: Slip, number: int) -> str:
    return f"disk {number + 1}/{len(slip.disks)} {slip.disks[number].serial}"


def _shown(text: str) -> str:
    return escape(_plain(text))


def _plain(text: str) -> str:
    """`text` on one line; what is no printable character, or turns the direction of others, stands as an escape."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _size(count: int, unknown: str = "not known") -> str:
    """As disks are sold: in powers of ten."""
    if not count:
        return unknown
    return f"{count / 1e12:.1f} TB" if count >= 10**12 else f"{count / 1e9:.0f} GB"


def _day(day: date) -> str:
    """The month as a word: whether the day or the month stands first depends on the country."""
    return f"{day.day} {day:%B %Y}"


def _moment(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    return f"{_day(utc)}, {utc:%H:%M} UTC"


#: A line to write on.
_LINE = '<span class="blank"></span>'
#: An address with more letters is set smaller; only those with instructions in them have.
_LONG_ADDRESS_CHARS = 180
#: A serial number with more would take more than two lines of a label; few have.
_LONG_SERIAL_CHARS = 34

_SLIP = """<section class="sheet">
<h1>Packing slip <span>import job <b class="code">{job}</b></span></h1>
<div class="top">
<div class="to"><h2>Ship to</h2>{via}<address class="{length}">{address}</address></div>
{qr}
</div>
<dl class="facts">
{facts}</dl>
<p class="rule">One job &ndash; one package &ndash; one tracking number</p>
<table class="disks">
<thead><tr><th></th><th>{disks}</th><th>Serial number</th><th>Model</th><th>Size</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
<div class="returns">
<div><h2>Return to</h2>{returns}</div>
<div><h2>Carrier and account for the return</h2>{account}</div>
</div>
<p class="small">This sheet travels in the package. It holds no key. As of {made}.</p>
</section>"""

_SHIPPER = """<section class="sheet">
<h1>Before the package goes <span>import job <b class="code">{job}</b></span></h1>
{deadline}
<ul class="checks">
{checks}</ul>
<p class="small">This sheet stays with you.</p>
<div class="signed"><span>Packed by</span><span>Date</span>{number}</div>
</section>"""

_DEADLINE = """<p class="deadline">Enter the tracking number before<br><strong>{day} {moment}</strong></p>
<p>Without it the service then deletes the import job, and nobody in the datacenter knows whose disks these are.
This command enters it:</p>
<p class="code">diskprep job ship STAGING --carrier NAME --tracking-number NUMBER ...</p>"""

_ENTERED = """<p class="deadline">The tracking number has been entered:<br><strong>{carrier} {number}</strong></p>
<p>The package must carry this one, and no other package may.</p>"""

_LABELS = """<section class="sheet">
<h1>Disk labels <span>import job <b class="code">{job}</b></span></h1>
<p class="small">One for each disk. Put it on the anti-static bag, or on the disk: never over the maker's label, a
hole or a connector.</p>
<div class="labels">
{labels}</div>
</section>"""

_LABEL = """<div class="label">
<div><p>Import job <b>{job}</b></p>
<p class="number">Disk {number} of {count}</p>
<p class="code serial {length}">{serial}</p>
<p class="small">{model}</p>
<p class="small">{size}</p>
<p class="small">{region}</p></div>
{qr}
</div>
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width">
<title>Import job {job}: packing slip</title>
<style>
@page {{ margin: 12mm 14mm; }}
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ color: #000; background: #fff; font: 10.5pt/1.3 sans-serif; max-width: 182mm; margin: 8mm auto; }}
h1 {{ font-size: 17pt; margin: 0 0 4mm; border-bottom: 0.5mm solid #000; display: flex; flex-wrap: wrap;
  justify-content: space-between; gap: 0 6mm; align-items: baseline; }}
h1 span {{ font-size: 12pt; font-weight: normal; }}
h1 .code {{ font-size: 16pt; }}
h2 {{ font-size: 9pt; margin: 0 0 1mm; text-transform: uppercase; letter-spacing: 0.3mm; }}
p {{ margin: 0 0 2mm; }}
td, p, li, address {{ overflow-wrap: anywhere; }}
address {{ font-style: normal; }}
table {{ width: 100%; border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: baseline; padding: 1mm 2mm 1mm 0; border-bottom: 0.1mm solid #000; }}
tr, li, .returns, .label, .signed {{ break-inside: avoid; }}
.sheet + .sheet {{ break-before: page; margin-top: 14mm; }}
.code {{ font-family: monospace; font-weight: bold; overflow-wrap: anywhere; }}
.small {{ font-size: 9pt; }}
.line {{ display: block; text-align: left; unicode-bidi: isolate; }}
.top {{ display: flex; gap: 6mm; align-items: flex-start; margin-bottom: 3mm; }}
.to {{ flex: 1; border: 0.5mm solid #000; padding: 3mm 4mm; min-height: 46mm; }}
.to address {{ font-size: 15pt; line-height: 1.25; }}
.qr {{ flex: none; width: 46mm; height: 46mm; }}
.qr svg {{ display: block; width: 100%; height: 100%; shape-rendering: crispEdges; }}
.to address.long {{ font-size: 11pt; }}
.facts {{ margin: 0; display: grid; grid-template-columns: 1fr 1fr; gap: 0 6mm; }}
.facts div {{ border-bottom: 0.1mm solid #000; padding: 1mm 0; break-inside: avoid; }}
.facts .right {{ grid-column: 2; }}
.facts dt {{ font-size: 9pt; }}
.facts dd {{ margin: 0; font-size: 12pt; min-height: 6mm; overflow-wrap: anywhere; }}
.facts .blank {{ display: block; height: 8mm; }}
.rule {{ border: 0.5mm solid #000; text-align: center; font-weight: bold; font-size: 13pt; padding: 1.5mm;
  margin: 4mm 0; }}
.disks {{ margin-bottom: 4mm; }}
.disks th {{ font-size: 9pt; }}
.disks td:nth-child(2), .disks td:last-child {{ white-space: nowrap; }}
.disks .code {{ font-size: 12pt; }}
td.box, th:empty {{ width: 9mm; }}
.box::before {{ content: ""; display: inline-block; width: 4mm; height: 4mm; border: 0.3mm solid #000;
  vertical-align: -0.6mm; }}
.returns {{ display: flex; gap: 8mm; margin-bottom: 3mm; }}
.returns > div {{ flex: 1; }}
.deadline {{ border: 0.5mm solid #000; padding: 3mm 4mm; font-size: 13pt; }}
.deadline strong {{ font-size: 17pt; }}
.checks {{ list-style: none; margin: 4mm 0; padding: 0; }}
.checks li {{ padding: 1.6mm 0 1.6mm 9mm; position: relative; border-bottom: 0.1mm solid #000; }}
.checks .box {{ position: absolute; left: 0; }}
.signed {{ margin-top: 16mm; display: flex; gap: 8mm; }}
.signed span {{ flex: 1; border-top: 0.2mm solid #000; padding-top: 1mm; font-size: 9pt; }}
.labels {{ display: grid; grid-template-columns: 90mm 90mm; padding: 0.2mm; }}
.label {{ height: 46mm; border: 0.2mm dashed #000; margin: -0.1mm; padding: 3mm; display: flex; gap: 2mm;
  overflow: hidden; }}
.label > div:first-child {{ flex: 1; min-width: 0; }}
.label p {{ margin: 0 0 1mm; line-height: 1.2; }}
.label .number {{ font-size: 14pt; font-weight: bold; }}
.label .serial {{ font-size: 12pt; }}
.label .serial.long {{ font-size: 9pt; }}
.label .qr {{ width: 33mm; height: 33mm; }}
@media print {{ body {{ margin: 0; max-width: none; }} .sheet + .sheet {{ margin-top: 0; }} }}
</style>
</head>
<body>
{slip}
{shipper}
{labels}
</body>
</html>
"""
