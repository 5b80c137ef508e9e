"""`diskprep status`."""

from __future__ import annotations

from typing import Any

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.jobmaking import tell_advice
from diskprep.disk.plan import load_plan
from diskprep.disk.record import last_step
from diskprep.errors import NotFound
from diskprep.importjob.advice import advise
from diskprep.importjob.deadline import deadline_of
from diskprep.importjob.saved import SavedJob, load_job
from diskprep.seal import load_seal
from diskprep.seed import Staging, load_seed, parse_staging


def status(staging: inputs.StagingArgument, json: inputs.Json = False) -> None:
    """One screen: what the staging holds, its disks, its job, and the next command."""
    place = parse_staging(staging)
    document, saved = _status(place), _saved(place)
    if json:
        output.print_json(document)
        return
    print(f"job {document['job_name']}, staged from {', '.join(map(output.escape, document['sources']))}")
    print(f"sealed: {'yes' if document['sealed'] else 'no'}, {output.size(document['data_bytes'])} to ship")
    for disk in document["disks"]:
        print(f"disk {disk['serial']}: {disk['packs']} packs, {output.size(disk['bytes'])}, {disk['state']}")
    if document["missing_bytes"]:
        print(f"not on any disk yet: a further disk of {output.size(document['missing_bytes'])} is needed")
    print(f"import job: {_job_line(document)}")
    for repair in document["repairs"]:
        print(f"repair: {output.escape(repair)}")
    if saved is not None:
        tell_advice(place, advise(saved, clock.now()))
    else:
        output.next_step(document["next"])


def _job_line(document: dict[str, Any]) -> str:
    if not document["job"]:
        return "not created"
    line = f"{document['job']}, {document['job_state']} when last seen ({document['job_seen']})"
    if document["deadline"]:
        line += f"; {document['deadline']['left']} left to enter the tracking number"
    return output.escape(line)


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
        "job_state": "",
        "job_seen": "",
        "deadline": None,
        "advice": "",
        "repairs": sorted(path.name for path in (place.root / "repairs").glob("*") if path.is_dir()),
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
    document["next"] = f"diskprep job create {place.root}"
    saved = _saved(place)
    if saved is None:
        return document
    deadline, advice = deadline_of(saved, clock.now()), advise(saved, clock.now())
    document |= {
        "job": saved.job.name,
        "job_state": "gone" if saved.gone else str(saved.job.state),
        "job_seen": clock.rfc3339(saved.seen),
        "deadline": deadline
        and {
            "until": clock.rfc3339(deadline.until),
            "left": deadline.words,
            "left_seconds": int(deadline.left.total_seconds()),
            "alarm_days": deadline.alarm,
        },
        "advice": advice.text,
        "next": f"diskprep {advice.command or 'job show'} {place.root}",
    }
    return document


def _saved(place: Staging) -> SavedJob | None:
    try:
        return load_job(place)
    except NotFound:
        return None
