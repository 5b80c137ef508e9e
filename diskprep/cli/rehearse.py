"""`diskprep rehearse`: the whole journey on this computer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diskprep import interrupts
from diskprep.cli import inputs, output
from diskprep.datacenter.faults import DriveFault
from diskprep.rehearsal.summary import Summary
from diskprep.rehearsal.trip import Options
from diskprep.volume.bitlocker import Method


def rehearse(
    source: Annotated[
        Path | None,
        typer.Argument(help="The folder to back up; without it a tree every Debian has.", show_default=False),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", metavar="DIR", help="Where to work; without it a folder below /var/tmp."),
    ] = None,
    disks: Annotated[
        int | None,
        typer.Option("--disks", metavar="N", help="Use N disk images; without it as many as needed, at least 2."),
    ] = None,
    disk_size: Annotated[
        str | None, typer.Option("--disk-size", metavar="SIZE", help="Size of each image, such as 512M.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything in the working folder, and remove nothing.")
    ] = False,
    method: Annotated[Method, typer.Option("--method", help="BitLocker's encryption method.")] = Method.XTS_AES_256,
    fault: Annotated[
        DriveFault | None,
        typer.Option(
            "--fault",
            help="What befalls the last disk on its way or in the datacenter; what is missing is then sent again.",
            show_default=False,
        ),
    ] = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Walk the whole journey on image files, from a source folder to restored trees, with a local datacenter.

    Nothing leaves this computer, and no disk of it is touched.
    """
    options = Options(
        source=source,
        workdir=workdir,
        disks=disks,
        disk_bytes=inputs.size_bytes(disk_size) if disk_size else None,
        keep=keep,
        method=method,
        fault=fault,
    )
    with interrupts.held():  # an import that is broken off can leave a library half there
        from diskprep.rehearsal import journey  # noqa: PLC0415 - it loads every stage, and Azure's client

    with output.screen(quiet=quiet) as screen:
        summary = journey.rehearse(options, screen.emit)
    if json:
        output.print_json(summary.document())
    else:
        print(_report(summary, keep=keep))
    if keep:
        output.next_step(
            f"diskprep disk key {summary.disks[0].serial} --staging {summary.workdir}/staging "
            f"--passphrase-file {summary.workdir}/passphrase"
        )
    else:
        output.next_step("diskprep rehearse --keep --workdir DIR, to try other tools on what it made")


def _report(summary: Summary, *, keep: bool) -> str:
    rows = [
        (
            stage.name,
            output.size(stage.bytes) if stage.bytes else "",
            f"{stage.seconds:.1f} s",
            f"{stage.megabytes_per_second:.{0 if stage.megabytes_per_second >= 10 else 1}f}" if stage.bytes else "",
        )
        for stage in summary.stages
    ]
    total = sum(stage.seconds for stage in summary.stages)
    rows.append(("together", "", f"{total:.1f} s", ""))
    points = [
        f"  {point.name}: {point.entries} entries, {output.size(point.bytes)}, as they were "
        f"({output.size(point.added_bytes)} stored)"
        for point in summary.recovery_points
    ]
    lines = [
        output.table(("stage", "bytes", "time", "MB/s"), rows),
        "",
        f"{len(summary.disks)} disks travelled, the job is {summary.job['state']}.",
        "Recovery points restored from the vault and compared with what the source was:",
        *points,
    ]
    if summary.left_out:
        lines.append(f"  not compared: {len(summary.left_out)} entries that changed or could not be read meanwhile")
    if keep:
        lines.append(f"Everything is left in {summary.workdir}")
    return "\n".join(lines)
