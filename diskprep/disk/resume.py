"""Resume: what an earlier run left on a disk, and whether it can be gone on with.

The journal says what was done, the disk must agree: the same inputs, the same volume, a recovery password that opens
it, the notes that belong to it. If anything does not fit, or reading it back has failed, the disk is started over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import journal
from diskprep.disk import copying, keys, memory, verify
from diskprep.disk.blocks import BlockDigests
from diskprep.disk.work import DISTRUSTED, Work
from diskprep.errors import DataDamaged, NotBuilt, NotFound, UsageError, WrongPassphrase
from diskprep.secrets import Secret
from diskprep.volume.format import read_volume_identity
from diskprep.volume.ntfs.table import Table


class Doubt(Exception):
    """Why a disk is started over, in words."""


def resume(fresh: Work, steps: Sequence[str]) -> tuple[Work, tuple[str, ...]]:
    """Take up what an earlier run left, and complete a batch that was broken off.

    Returns the work to go on with and the names of the steps that are done; `fresh` and none when the disk is started
    over, and why is told. Raises DiskFailed, StorageFull or StorageUnavailable.
    """
    records = _last_attempt(fresh.journal.records)
    formatted = next((entry.fields for entry in records if entry.type == "formatted"), None)
    if formatted is None:
        if not records and read_volume_identity(fresh.device) is not None:
            fresh.note(f"disk {fresh.order.serial} is made anew: no journal tells of the volume on it")
        return fresh, ()
    work = replace(fresh, volume_guid=str(formatted["volume_guid"]))
    try:
        _complete(work, records, _agree(work, records))
    except Doubt as doubt:
        fresh.note(f"disk {fresh.order.serial} is started over: {doubt}")
        memory.forget(fresh.order.memory, work.volume_guid)
        return fresh, ()
    records = _last_attempt(work.journal.records)
    done = tuple(step for step in steps if any(entry.type == step for entry in records))
    work.note(f"disk {work.order.serial} goes on: {work.files} of {work.order.file_count} files are on it")
    work.record("resumed", files=work.files)
    return work, done


def _last_attempt(records: Sequence[journal.Record]) -> list[journal.Record]:
    """The records since the disk was claimed the last time."""
    begins = [number for number, entry in enumerate(records) if entry.type == "claimed"]
    return list(records[begins[-1] :]) if begins else []


def _agree(work: Work, records: Sequence[journal.Record]) -> Table:
    """Make sure that the disk is what the journal describes, and unlock it; return its files. Raises Doubt."""
    last = {entry.type: entry.fields for entry in records}
    if DISTRUSTED in last:
        raise Doubt("what was read back from it was not what had been written")
    changed = [name for name, value in work.order.inputs.items() if last["claimed"].get(name) != value]
    if changed:
        raise Doubt(f"it was begun with another {' and '.join(changed)}")
    found = read_volume_identity(work.device)
    if found is None or str(found[0]) != work.volume_guid:
        raise Doubt("it does not carry the volume that was begun")
    work.password = _password(work)
    try:
        volume = work.opened
        if work.redo.pending() is not None:
            work.redo.replay(work.device)  # harmless where it was in place already
        return Table(volume)
    except (DataDamaged, NotBuilt, NotFound, UsageError, WrongPassphrase) as error:
        raise Doubt(error.message) from None


def _password(work: Work) -> Secret[str]:
    order = work.order
    kept = memory.recall(order.memory, work.volume_guid)
    if kept is not None:
        return kept
    if order.escrow_key is None:
        raise Doubt("its recovery password is not in memory any more, and no passphrase was given to look it up")
    try:
        return keys.load(order.staging, order.seed, order.serial, order.escrow_key)
    except (DataDamaged, NotFound, WrongPassphrase) as error:
        raise Doubt(error.message) from None


def _complete(work: Work, records: Sequence[journal.Record], found: Table) -> None:
    """Count what is on the disk, with the batch or manifest that the redo record has completed. Raises Doubt."""
    batches = [entry.fields for entry in records if entry.type == "batch"]
    if batches:
        work.files = int(batches[-1]["first"]) + int(batches[-1]["files"])
        work.blocks = int(batches[-1]["blocks"])
    tag = work.redo.pending()
    fields: dict[str, Any] = json.loads(tag) if tag else {}
    step = fields.pop("step", "")
    is_batch = step == "batch" and fields["first"] == work.files
    if is_batch:
        batches.append(fields)
    manifest = next((dict(entry.fields) for entry in records if entry.type == "manifest"), None)
    is_manifest = step == "manifest" and manifest is None
    if is_manifest:
        manifest = fields
    _check_blocks(work, batches)
    _check_files(work, found, batches, manifest)
    if is_batch:
        copying.finish_batch(work, fields)
    if is_manifest:
        work.record("manifest", **fields)
    if manifest is not None:
        work.manifest_hash = str(manifest["hash"])
    work.redo.clear()


def _check_files(work: Work, found: Table, batches: Sequence[Any], manifest: dict[str, Any] | None) -> None:
    """The disk must have the files that the journal tells of, and no others, for the next ones go beside them.

    An older copy of the journal, for one, tells of fewer. What is in the files is for the read-back. Raises Doubt.
    """
    count = int(batches[-1]["first"]) + int(batches[-1]["files"]) if batches else 0
    files = itertools.islice(work.order.files(), count)
    wanted = ((f"{copying.FOLDER}/{file.name}", file.size_bytes) for file in files)
    last = [(verify.MANIFEST_PATH, int(manifest["size_bytes"]))] if manifest is not None else []
    for path, size in itertools.chain(wanted, last):
        number = found.find(path)
        if number is None or found.size_bytes(number) != size:
            raise Doubt(f"{path} is not on it as the journal tells")
    if more := len(found) - count - len(last):
        raise Doubt(f"it has {more} files of which the journal does not tell")


def _check_blocks(work: Work, batches: Sequence[Any]) -> None:
    """The MD5s of all blocks so far must be as the batches' records say. Raises Doubt."""
    if not batches:
        return
    first = 0
    try:
        with BlockDigests(work.blocks_path, int(batches[-1]["blocks"])) as digests:
            for fields in batches:
                end = int(fields["blocks"])
                if hashlib.sha256(digests.read(first, end - first)).hexdigest() != fields["digest"]:
                    raise DataDamaged(f"{work.blocks_path} is not what the journal says")
                first = end
    except DataDamaged as error:
        raise Doubt(error.message) from None
