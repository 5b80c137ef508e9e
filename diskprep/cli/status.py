"""`diskprep status`."""

from __future__ import annotations

from typing import Any

from diskprep.cli import inputs, output
from diskprep.disk.plan import load_plan
from diskprep.disk.record import last_step
from diskprep.errors import NotFound
from diskprep.importjob.job import load_job
from diskprep.seal import load_seal
from diskprep.seed import Staging, load_seed, parse_staging


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
        print(f"disk {disk['serial']}: {disk['packs']} packs, {output.size(disk['bytes'])}, {disk['state']}")
    if document["missing_bytes"]:
        print(f"not on any disk yet: a further disk of {output.size(document['missing_bytes'])} is needed")
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
        "missing_bytes": 0,
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
        {
            "serial": disk.serial,
            "packs": len(disk.packs),
            "bytes": disk.payload_bytes,
            "state": last_step(place, disk.serial) or "not begun",
        }
        for disk in plan.disks
    ]
    document["missing_bytes"] = plan.missing_bytes
    if not plan.is_complete or any(disk["state"] != "sealed" for disk in document["disks"]):
        return document
    document["next"] = f"diskprep job create {place.root} --endpoint URL --token-file FILE"
    try:
        document["job"] = load_job(place).job.name
    except NotFound:
        return document
    document["next"] = f"diskprep job show {place.root} --endpoint URL --token-file FILE"
    return document
