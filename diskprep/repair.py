"""Repairs: packs that did not arrive, sent once more as a trip of their own, with a job of its own.

A repair is a staging below `repairs/` of the first one, named as its job. It has a seed, a seal of these packs and of
the index files that name them, and a copy of the key of the escrow; its repository is the first staging's. So disks are
planned and prepared and the job is created from it as from any other. A repair may be repaired: all lie side by side.

Invariants: a pack is in one repair of a job only; the sealed repository is not touched.
Write order: all files below a temporary name, each durable, then the rename of the directory. A crash leaves a folder
whose name is no job's; it is removed by the next repair that is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diskprep import clock, durable
from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound, UsageError
from diskprep.seal import Seal, load_seal, save_seal
from diskprep.seed import JOB_NAME, Staging, load_seed, save_seed

FORMAT = "diskprep-repair"
VERSION = 1

_RECORD = "repair.json"
_LOCK = "repair.lock"
_ESCROW_KEY = "key"
_JOB_NAME_MAX = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A trip that sends packs again.

    `of`: the job whose drives did not bring them. `number`: 1 for the first repair of a staging, then 2, 3...
    `drives`: serial of each of those drives -> what became of it, in words.
    """

    staging: Staging
    job_name: str
    of: str
    number: int
    created: str
    drives: Mapping[str, str] = field(default_factory=dict)

    @property
    def seal(self) -> Seal:
        """What it sends. Raises NotFound or DataDamaged."""
        return load_seal(self.staging.seal_file)


def make_repair(
    staging: Staging,
    packs: Collection[str],
    *,
    job_name: str = "",
    drives: Mapping[str, str] | None = None,
    taken: Collection[str] = (),
) -> Repair:
    """A repair that sends these data packs (object names) of a staging, or of a repair, again.

    Packs that an earlier repair of the same job sends are left to that one; when it sends them all, it is the answer.
    So the same call again is the same repair. Without `job_name`: the first job's name with `-r1`, `-r2`...
    `taken`: names that other import jobs have.
    Raises UsageError for no packs, packs the seal does not have, or a bad name; JobConflict for a name that is taken,
    or another than that of the repair that sends these packs already; Locked, NotFound, DataDamaged, StorageFull,
    StorageUnavailable.
    """
    seed, seal = load_seed(staging), load_seal(staging.seal_file)
    wanted = frozenset(packs)
    if not wanted:
        raise UsageError("there is nothing to send again")
    if job_name and not JOB_NAME.fullmatch(job_name):
        raise UsageError(
            f"{job_name!a} cannot be the name of a job",
            hint="3 to 24 lower-case letters, digits and hyphens, a letter first",
        )
    if strange := wanted - {pack.name for pack in seal.data_packs}:
        raise UsageError(f"{len(strange)} packs are not of this staging, the first is {min(strange)}")
    durable.make_directory(staging.repairs)
    busy, hint = "another process makes a repair of this staging", "wait until it has ended"
    with durable.only_process(staging.repairs / _LOCK, busy=busy, hint=hint):
        _remove_unfinished(staging.repairs)
        found = find_repairs(staging)
        earlier = [repair for repair in found if repair.of == seed.job_name and repair.job_name != job_name]
        sent = {repair.job_name: wanted & {pack.name for pack in repair.seal.data_packs} for repair in earlier}
        left = wanted.difference(*sent.values())
        named = next((repair for repair in found if repair.job_name == job_name), None)
        if named is not None:
            return _same(named, seed.job_name, wanted, left)
        if not left:
            there = next(repair for repair in reversed(earlier) if sent[repair.job_name])
            if job_name:
                raise JobConflict(
                    f"the repair {there.job_name} sends that already, so there is none to be named {job_name}",
                    hint=f"leave the name out, or give {there.job_name}",
                )
            return there
        number = max((repair.number for repair in found), default=0) + 1
        first = load_seed(staging.first).job_name
        name = job_name or _free_name(first, number, staging.repairs, taken)
        if name == first:
            raise JobConflict(f"{name} is the name of the first job", hint="give the repair's job another name")
        if name in taken:
            raise JobConflict(f"there is an import job {name} already", hint="give the repair's job another name")
        made = Repair(
            staging=Staging(staging.repairs / name, staging.first.root),
            job_name=name,
            of=seed.job_name,
            number=number,
            created=clock.rfc3339(clock.now()),
            drives=dict(drives or {}),
        )
        _write(staging, made, left, seal)
        return made


def find_repairs(staging: Staging) -> tuple[Repair, ...]:
    """All repairs of the staging that this one is or belongs to, oldest first. Raises DataDamaged or FormatTooNew."""
    folder = staging.repairs
    try:
        names = [name for name in os.listdir(folder) if JOB_NAME.fullmatch(name)]  # noqa: PTH208  names only
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise durable.storage_error(error, f"list {folder}") from error
    found = [_load(Staging(folder / name, staging.first.root)) for name in names]
    return tuple(sorted(found, key=lambda repair: repair.number))


def placements(staging: Staging) -> dict[str, str]:
    """Object name of each data pack -> serial of the disk it travels on, over the first plan and all repairs' plans.

    A repair's disk takes the place of the one before; a repair without a plan changes nothing. It tells where to look
    for a pack, and proves nothing. Raises NotFound when the first staging has no plan, DataDamaged, FormatTooNew.
    """
    found = placement(staging.first)
    for repair in find_repairs(staging):
        with contextlib.suppress(NotFound):
            found |= placement(repair.staging)
    return found


def partial_seal(seal: Seal, packs: Collection[str], *, job_name: str, created: str) -> Seal:
    """The seal of these data packs (object names) alone, and of the index files that name at least one of them."""
    wanted = frozenset(packs)
    data = [pack for pack in seal.data_packs if pack.name in wanted]
    chosen = {file.name for file in (*data, *seal.indexes_of(data))}
    places = [place for place, file in enumerate(seal.files) if file.name in chosen]
    moved = {before: after for after, before in enumerate(places)}
    indexes = None
    if seal.indexes is not None:
        indexes = {
            name: tuple(moved[place] for place in named if place in moved)
            for name, named in seal.indexes.items()
            if name in chosen
        }
    files = tuple(seal.files[place] for place in places)
    return replace(seal, job_name=job_name, created=created, files=files, indexes=indexes)


def _same(found: Repair, job_name: str, wanted: Collection[str], left: Collection[str]) -> Repair:
    """`found`, when it sends what is asked for."""
    sends = {pack.name for pack in found.seal.data_packs}
    if found.of == job_name and sends in (set(wanted), set(left)):
        return found
    raise JobConflict(
        f"there is a repair {found.job_name} already, which sends other packs of job {found.of}",
        hint="give this repair's job another name",
    )


def _free_name(first: str, number: int, folder: Path, taken: Collection[str] = ()) -> str:
    while True:
        suffix = f"-r{number}"
        name = first[: _JOB_NAME_MAX - len(suffix)].rstrip("-") + suffix
        if name != first and name not in taken and not durable.exists(folder / name):
            return name
        number += 1


def _write(staging: Staging, made: Repair, packs: Collection[str], seal: Seal) -> None:
    """Make the directory of a repair; it appears whole."""
    seed = replace(load_seed(staging), job_name=made.job_name, created=made.created)
    temporary = Staging(staging.repairs / f"{durable.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "job_name": made.job_name,
        "of": made.of,
        "number": made.number,
        "created": made.created,
        "drives": dict(made.drives),
    }
    durable.make_directory(temporary.escrow)
    save_seed(temporary, seed)
    durable.write_file(temporary.escrow / _ESCROW_KEY, _escrow_key(staging.first))
    save_seal(
        temporary.seal_file,
        partial_seal(seal, packs, job_name=made.job_name, created=made.created),
    )
    durable.write_json(temporary.root / _RECORD, record)
    try:
        temporary.root.rename(made.staging.root)
        durable.fsync_directory(staging.repairs)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise JobConflict(f"{made.staging.root} is there already, and is no repair") from None
        raise durable.storage_error(error, f"make {made.staging.root}") from error


def _escrow_key(first: Staging) -> bytes:
    """The seed's private key as the staging keeps it, sealed by the repository's data key."""
    path = first.escrow / _ESCROW_KEY
    try:
        return path.read_bytes()
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error


def _load(staging: Staging) -> Repair:
    path = staging.root / _RECORD
    try:
        document = durable.read_json(path, limit_bytes=1 << 20)
    except NotFound:
        raise DataDamaged(
            f"{staging.root} is no repair: it has no {_RECORD}", hint="move away what does not belong there"
        ) from None
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{path} is not the record of a repair")
    if document.pop("version", None) != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    try:
        found = Repair(staging=staging, **document)
    except TypeError as error:
        raise DataDamaged(f"{path} is damaged: {error}") from None
    texts = (found.job_name, found.of, found.created)
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.number, int):
        raise DataDamaged(f"{path} has a field of the wrong kind")
    if not isinstance(found.drives, dict) or not all(isinstance(text, str) for text in found.drives.values()):
        raise DataDamaged(f"{path} has a field of the wrong kind")
    if found.job_name != staging.root.name:
        raise DataDamaged(f"{path} belongs to {found.job_name}", hint="a repair's folder is not renamed")
    return found


def placement(staging: Staging) -> dict[str, str]:
    """What one staging's plan.json says: object name of each data pack -> serial. Raises as `placements`."""
    path = staging.plan_file
    document = durable.read_json(path)
    try:
        if (document["format"], document["version"]) != ("diskprep-plan", 1):
            raise ValueError("it is no plan that this version knows")
        return {str(name): str(disk["serial"]) for disk in document["disks"] for name in disk["packs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataDamaged(f"{path} is damaged: {error}", hint="prepare the disks again") from None


def _remove_unfinished(folder: Path) -> None:
    """Remove what a crash left; only the process that makes repairs may."""
    try:
        for path in folder.glob(f"{durable.TEMPORARY_PREFIX}*"):
            shutil.rmtree(path)
    except OSError as error:
        raise durable.storage_error(error, f"remove a half-made repair in {folder}") from error
