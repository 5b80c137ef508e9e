"""`diskprep status`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.advising import next_command, tell_advice
from diskprep.cli.places import ingested_file
from diskprep.cli.stores import KeyFile, open_store, open_vault
from diskprep.disk.plan import load_plan
from diskprep.disk.record import last_step
from diskprep.errors import DataDamaged, DiskprepError, DrivesFailed, FormatTooNew, NotFound, StorageUnavailable
from diskprep.importjob.advice import Advice, advise
from diskprep.importjob.deadline import deadline_of
from diskprep.importjob.saved import SavedJob, load_job
from diskprep.repair import Repair, find_repairs
from diskprep.seal import load_seal
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.store import Store
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate

if TYPE_CHECKING:
    from diskprep.repository.repository import Repository


def status(
    staging: inputs.StagingArgument,
    vault: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="The vault, to be told which recovery points can be restored.", show_default=False
        ),
    ] = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """One screen: what the staging holds, its disks, its job and its repairs, and the next command.

    With --vault also which recovery points can be restored already. Ends as `job show` does, from what was seen last:
    with 43 when a job needs its tracking number within five days, with 44 when a drive did not arrive or failed.
    """
    place = parse_staging(staging)
    repository = None
    if vault is not None:
        repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    document = _status(place, repository, account_key_file)
    if repository is not None:
        document["recovery_points"] = _points(repository)
    if json:
        output.print_json(document)
    else:
        _show(document)
    saved = _saved(place)
    if saved is None:
        output.next_step(document["next"])
        return
    turn = _turn(place, saved)
    if turn.advice is None:
        output.next_step(f"diskprep status {output.word(turn.place.root)}")
    elif turn.advice.command == "vault ingest" and document["ingested"]:
        output.next_step(document["next"])
    else:
        tell_advice(turn.place, turn.advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """Whose turn it is: the staging or one of its repairs, and what to do; None: its job is not created yet."""

    place: Staging
    advice: Advice | None


def _turn(place: Staging, saved: SavedJob) -> _Turn:
    """A job whose drives failed is settled by its repairs: the first of them that is not through comes next."""
    own = advise(saved, clock.now())
    sent_again = [made for made in find_repairs(place) if made.of == saved.job.name]
    if not isinstance(own.error, DrivesFailed) or not sent_again:
        return _Turn(place=place, advice=own)
    turn = _Turn(place=place, advice=own)
    for made in sent_again:
        job = _saved(made.staging)
        turn = _Turn(place=made.staging, advice=None) if job is None else _turn(made.staging, job)
        if turn.advice is None or turn.advice.command != "vault ingest":
            break
    return turn


def _show(document: dict[str, Any]) -> None:
    print(f"job {document['job_name']}, staged from {', '.join(map(output.escape, document['sources']))}")
    print(f"sealed: {'yes' if document['sealed'] else 'no'}, {output.size(document['data_bytes'])} to ship")
    for disk in document["disks"]:
        print(f"disk {disk['serial']}: {disk['packs']} packs, {output.size(disk['bytes'])}, {disk['state']}")
    if document["missing_bytes"]:
        print(f"not on any disk yet: a further disk of {output.size(document['missing_bytes'])} is needed")
    print(f"import job: {output.escape(_job_line(document, name=True))}")
    for repair in document["repairs"]:
        print(output.escape(f"repair {repair['name']}: {_job_line(repair)}"))
    if document["ingested"]:
        print(f"in the vault, all of it: {document['ingested']}")
    if document["withdrawn"]:
        print("certificate: the vault has it no longer: keep the staging, and ingest again")
    for point in document.get("recovery_points", ()):
        print(f"recovery point {point['id'][:8]} of {point['time']}: {_point_line(point)}")


def _job_line(document: dict[str, Any], *, name: bool = False) -> str:
    if not document["job"]:
        return "not created" if name else "its job is not created"
    line = f"{document['job']}, " if name else ""
    line += f"{document['job_state']} when last seen ({document['job_seen']})"
    if document["deadline"]:
        line += f"; {document['deadline']['left']} left to enter the tracking number"
    return line


def _points(repository: Repository) -> list[dict[str, Any]]:
    """The recovery points of a vault, and what each still lacks."""
    from diskprep.vault.restorable import restorable  # noqa: PLC0415 - numpy, which a look at a staging can do without

    lacks = restorable(repository)
    return [
        {
            "id": point.id,
            "time": point.time.isoformat(),
            "restorable": lacks[point.id].is_whole,
            "missing_packs": len(lacks[point.id].missing_packs),
            "missing_bytes": lacks[point.id].missing_bytes,
            "unknown_blobs": lacks[point.id].unknown_blobs,
        }
        for point in repository.snapshots()
        if point.id in lacks
    ]


def _point_line(point: dict[str, Any]) -> str:
    if point["restorable"]:
        return "can be restored"
    if point["unknown_blobs"]:
        return "is damaged: `diskprep vault check` tells more"
    packs = point["missing_packs"]
    return f"waits for {packs} pack{'s' if packs > 1 else ''}, {output.size(point['missing_bytes'])}"


def _status(place: Staging, vault: Repository | None, key_file: Path | None) -> dict[str, Any]:
    document, saved = _disks(place), _saved(place)
    if saved is not None:
        document |= _job(saved) | {"next": next_command(place, advise(saved, clock.now()))}
    proven = _certificate(place) if document["sealed"] else None
    document["withdrawn"] = proven is not None and _is_withdrawn(proven, vault, key_file)
    if document["withdrawn"]:
        proven = None
    document["ingested"] = "" if proven is None else proven.created
    if proven is not None:
        turn = None if saved is None else _turn(place, saved).advice
        if turn is not None and turn.command == "vault ingest":
            document["next"] = _cleanup_command(place, proven)
    return document


def _certificate(place: Staging) -> Certificate | None:
    """The certificate that ingestion left in the staging, when it is of this seal."""
    try:
        proven = certificates.load(ingested_file(place))
        seal = load_seal(place.first.seal_file)
    except (DataDamaged, FormatTooNew, NotFound, StorageUnavailable):
        return None
    return proven if proven.seal_digest == seal.digest else None


def _is_withdrawn(proven: Certificate, vault: Repository | None, key_file: Path | None) -> bool:
    """Whether the vault, where it can be reached, has this certificate no longer. A folder needs no key for that."""
    if vault is not None and vault.id == proven.repository_id:
        store = vault.store
    elif key_file is None and proven.vault.startswith(("https://", "http://")):
        return False
    else:
        store = open_store(proven.vault, key_file)
    try:
        return certificates.load_from_vault(store, proven.job_name).digest != proven.digest
    except NotFound:
        return _is_there(store)
    except DiskprepError:
        return False


def _is_there(vault: Store) -> bool:
    """Whether this is a repository at all, and not a folder that nothing is mounted on."""
    try:
        return vault.stat("config") is not None
    except DiskprepError:
        return False


def _cleanup_command(place: Staging, proven: Certificate) -> str:
    container = proven.container
    emptied = f" --container {output.word(container)}" if container and container != proven.vault else ""
    return (
        f"diskprep cleanup plan {output.word(place.first.root)}{emptied} --vault {output.word(proven.vault)} "
        f"--certificate {output.word(ingested_file(place))}"
    )


def _disks(place: Staging) -> dict[str, Any]:
    """What is known without the job."""
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
        "repairs": [] if place.whole else [_repair(made) for made in find_repairs(place)],
        "next": f"diskprep stage {' '.join(map(output.word, seed.sources))} --staging {output.word(place.root)} ...",
    }
    if not document["sealed"]:
        return document
    seal = load_seal(place.seal_file)
    document["data_bytes"] = sum(pack.size_bytes for pack in seal.data_packs)
    document["next"] = f"diskprep disk prepare {output.word(place.root)} DISK... --container-sas-file FILE"
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
    if plan.is_complete and all(disk["state"] == "sealed" for disk in document["disks"]):
        document["next"] = f"diskprep job create {output.word(place.root)}"
    return document


def _repair(made: Repair) -> dict[str, Any]:
    saved = _saved(made.staging)
    found = {"job": "", "job_state": "", "job_seen": "", "deadline": None, "advice": ""}
    return {"name": made.job_name, "staging": str(made.staging.root), **(found if saved is None else _job(saved))}


def _job(saved: SavedJob) -> dict[str, Any]:
    """A job as it was last seen."""
    deadline = deadline_of(saved, clock.now())
    return {
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
        "advice": advise(saved, clock.now()).text,
    }


def _saved(place: Staging) -> SavedJob | None:
    try:
        return load_job(place)
    except NotFound:
        return None
