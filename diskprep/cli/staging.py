"""`diskprep stage` and `diskprep status`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep.cli import inputs, output
from diskprep.disk.plan import load_plan
from diskprep.errors import NotFound, SourceIncomplete
from diskprep.importjob.job import load_job
from diskprep.seal import load_seal
from diskprep.secrets import check_new_passphrase
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.source import Source
from diskprep.staging import stage as stager
from diskprep.staging.writer import BackupOptions


def stage(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders or files to back up.")],
    staging: inputs.StagingOption,
    job: Annotated[str, typer.Option("--job", metavar="NAME", help="The import job's name.")],
    storage_account: Annotated[str, typer.Option("--storage-account", help="The account that receives the import.")],
    container: Annotated[str, typer.Option("--container", help="The container that receives the import.")],
    subscription: Annotated[str, typer.Option("--subscription", help="The Azure subscription's id.")],
    resource_group: Annotated[str, typer.Option("--resource-group", help="The job's resource group.")],
    location: Annotated[str, typer.Option("--location", help="The account's region.")] = "westeurope",
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Write the initial full backup into a staging location, as a restic repository."""
    place = parse_staging(staging)
    new = not place.seed_file.exists()
    secret = inputs.passphrase(passphrase_file, passphrase_fd, new=new)
    with output.screen(quiet=quiet) as screen:
        result = stager.stage(
            place,
            [Source(os.fsencode(source.absolute())) for source in sources],
            passphrase=check_new_passphrase(secret) if new else secret,
            job_name=job,
            storage_account=storage_account,
            container=container,
            subscription_id=subscription,
            resource_group=resource_group,
            location=location,
            hostname=socket.gethostname(),
            options=BackupOptions(),
            emit=screen.emit,
        )
    print(f"snapshot {result.snapshot[:8]}: {result.files} files, {output.size(result.bytes_processed)}")
    print(f"staged in {place.root}: {output.size(result.bytes_stored)}")
    output.next_step(f"diskprep plan {place.root} --disk-size 4T")
    if result.unreadable:
        for name, reason in result.unreadable[:20]:
            print(f"not stored: {output.escape(name)}: {reason}")
        raise SourceIncomplete(
            f"{len(result.unreadable)} source entries could not be read; all others are stored",
            hint="the staging is complete without them",
        )


def status(staging: inputs.StagingArgument, json: inputs.Json = False) -> None:
    """One screen: what the staging holds, its disks, its job, and the next command."""
    place = parse_staging(staging)
    document = _status(place)
    if json:
        output.print_json(document)
        return
    print(f"job {document['job_name']}, staged from {', '.join(map(output.escape, document['sources']))}")
    print(f"sealed: {'yes' if document['sealed'] else 'no'}, {output.size(document['data_bytes'])} to ship")
    for disk in document["disks"]:
        print(f"disk {disk['serial']}: {disk['packs']} packs, {output.size(disk['bytes'])}")
    print(f"import job: {document['job'] or 'not created'}")
    output.next_step(document["next"])


def _status(place: Staging) -> dict[str, Any]:
    seed = load_seed(place)
    document: dict[str, Any] = {
        "job_name": seed.job_name,
        "sources": list(seed.sources),
        "sealed": place.seal_file.exists(),
        "data_bytes": 0,
        "disks": [],
        "job": "",
        "next": f"diskprep stage {' '.join(seed.sources)} --staging {place.root} ...",
    }
    if not document["sealed"]:
        return document
    seal = load_seal(place.seal_file)
    document["data_bytes"] = sum(pack.size_bytes for pack in seal.data_packs)
    document["next"] = f"diskprep disk prepare {place.root} DISK..."
    try:
        plan = load_plan(place.plan_file, seal)
    except NotFound:
        return document
    document["disks"] = [
        {"serial": disk.serial, "packs": len(disk.packs), "bytes": disk.payload_bytes} for disk in plan.disks
    ]
    document["next"] = f"diskprep job create {place.root} --endpoint URL --token-file FILE"
    try:
        document["job"] = load_job(place).job.name
    except NotFound:
        return document
    document["next"] = f"diskprep job show {place.root} --endpoint URL --token-file FILE"
    return document
