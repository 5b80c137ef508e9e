"""`diskprep disk list` and `diskprep disk show`: what is attached, and what may be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

import typer

from diskprep.cli import inputs, output
from diskprep.disk import content, guard, health, inventory, service, target
from diskprep.disk.content import Found
from diskprep.disk.health import Health
from diskprep.disk.inventory import DiskFacts
from diskprep.disk.machine import Machine
from diskprep.disk.plan import MAX_DRIVES
from diskprep.disk.service import Verdict
from diskprep.errors import NotFound

_AT_ONCE = 16
_HEADINGS = ("disk", "serial", "model", "size", "bus", "kind", "health", "erase", "service")

Disk = Annotated[str, typer.Argument(metavar="DISK", help="A serial, a name of /dev/disk/by-id, or a device node.")]


class _Seen:
    """A disk with everything that is known and judged of it."""

    def __init__(self, facts: DiskFacts, carries: tuple[Found, ...] | None, well: Health, refusals: list[str]) -> None:
        self.facts, self.carries, self.health, self.refusals = facts, carries, well, refusals
        self.verdict: Verdict = service.judge(facts)

    @property
    def name(self) -> str:
        """What a command takes for it: a loop device needs a serial with it."""
        return output.word(self.facts.serial or f"{self.facts.node},serial=NUMBER")

    @property
    def document(self) -> dict[str, Any]:
        return {
            **asdict(self.facts),
            "node": str(self.facts.node),
            "health": asdict(self.health),
            "content": None if self.carries is None else [asdict(part) for part in self.carries],
            "refusals": self.refusals,
            "service": {**asdict(self.verdict), "taken": self.verdict.taken},
        }

    @property
    def row(self) -> tuple[str, ...]:
        facts = self.facts
        cells = (str(facts.node), facts.serial, facts.model, output.size(facts.size_bytes), facts.bus, _kind(facts))
        passed = {True: "passed", False: "FAILING", None: ""}[self.health.passed]
        answers = ("no" if self.refusals else "yes", "takes it" if self.verdict.taken else "no")
        return tuple(output.escape(cell) or "-" for cell in (*cells, passed, *answers))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What does not fit in a row."""
        verdict = self.verdict
        return [
            ("on it", content.in_words(self.carries)),
            ("erase", f"no: {'; '.join(self.refusals)}" if self.refusals else "may be erased"),
            ("service", "takes it" if verdict.taken else f"does not take it: {'; '.join(verdict.reasons)}"),
            *(("", f"but note: {warning}") for warning in verdict.warnings),
        ]


def list_disks(json: inputs.Json = False) -> None:
    """The disks of this computer: which may be erased, which the service takes, and why not."""
    disks = inventory.list_disks()
    seen = _look(disks, disks)
    free = [disk for disk in seen if not disk.refusals]
    if json:
        output.print_json({"disks": [disk.document for disk in seen], "drives_per_job": MAX_DRIVES})
    else:
        print(output.table(_HEADINGS, [disk.row for disk in seen]))
        for disk in seen:
            print(f"\n{output.escape(str(disk.facts.node))}")
            _print_lines(disk.lines)
        ship = sum(disk.verdict.taken for disk in free)
        print(
            f"\n{len(free)} of {len(seen)} disks may be erased; "
            f"{ship} of these the service takes, {MAX_DRIVES} in a job"
        )
    output.next_step(f"diskprep disk prepare STAGING {free[0].name if free else 'DISK...'} --container-sas-file FILE")


def show_disk(disk: Disk, json: inputs.Json = False) -> None:
    """One disk: everything that is known of it, and what is on it now."""
    path, _ = target.locate(disk)
    if not path.is_block_device():
        raise NotFound(f"there is no disk {disk}", hint="`diskprep disk list` shows the disks")
    facts = inventory.facts_of(path)
    (seen,) = _look([facts], inventory.list_disks(ours=Machine().names))
    if json:
        output.print_json(seen.document)
    else:
        print(output.table(_HEADINGS[:-2], [seen.row[:-2]]))
        _print_lines([*_details(facts), ("health", seen.health.says), *seen.lines])
        for part in seen.carries or ():
            words = (part.table, part.kind, repr(part.label) if part.label else "", part.note)
            text = " ".join(word for word in words if word) or "nothing known"
            _print_lines([("", f"{part.name}, {output.size(part.size_bytes)}: {text}")])
    ready = f"prepare STAGING {seen.name} --container-sas-file FILE" if not seen.refusals else "list"
    output.next_step(f"diskprep disk {ready}")


def _look(disks: Sequence[DiskFacts], everything: Sequence[DiskFacts]) -> list[_Seen]:
    """The disks are asked at the same time: one that sleeps takes seconds to answer."""
    with ThreadPoolExecutor(_AT_ONCE) as crew:
        carried = list(crew.map(content.look, disks))
        healths = list(crew.map(health.ask, disks))
    return [
        _Seen(disk, carries, well, guard.refusals(disk, all_disks=everything))
        for disk, carries, well in zip(disks, carried, healths, strict=True)
    ]


def _details(facts: DiskFacts) -> list[tuple[str, str]]:
    """What is not in the table, and only what is known."""
    told = ", ".join(f"{claim.serial} by {claim.source}" for claim in facts.claims)
    speed = {0: "none that turn", None: ""}.get(facts.rotation_rpm, f"{facts.rotation_rpm} a minute")
    rows = (
        ("serial", told),
        ("firmware", facts.firmware),
        ("WWN", facts.wwn),
        ("sectors", f"{facts.sector_bytes} bytes, {facts.physical_sector_bytes} on the medium"),
        ("width", facts.form_factor),
        ("platters", speed),
        ("bridge", facts.bridge),
        ("removable", "yes" if facts.removable else ""),
        ("names", ", ".join(facts.aliases)),
        ("attached", f"as the kernel's number {facts.sequence}" if facts.sequence else ""),
    )
    return [(name, value) for name, value in rows if value]


def _kind(facts: DiskFacts) -> str:
    """SSD, or HDD with its speed; and the generation of SATA."""
    spins = facts.rotational if facts.rotation_rpm is None else facts.rotation_rpm > 0
    speed = f" {facts.rotation_rpm}" if facts.rotation_rpm else ""
    kind = f"HDD{speed}" if spins else "SSD"
    sata = f" SATA {'I' * facts.sata_generation}" if facts.sata_generation else ""
    return "" if facts.bus in {"loop", "virtio", "xen"} else f"{kind}{sata}"


def _print_lines(lines: Sequence[tuple[str, str]]) -> None:
    for name, value in lines:
        print(f"  {f'{name}:' if name else '':<11}{output.escape(value)}")
