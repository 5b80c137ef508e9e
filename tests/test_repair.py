"""A repair is a staging of its own: whole or absent, the same when asked for twice, and its disks can be prepared."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import parse_manifest
from seeds import SEED

from diskprep import durable, escrow, events
from diskprep.disk import keys, prepare, record, target, work
from diskprep.disk import plan as plans
from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, Locked, NotFound, UsageError
from diskprep.repair import _free_name, find_repairs, make_repair, partial_seal, placements
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed, parse_staging, save_seed
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Reader

MIB = 1 << 20
PACKS = 6


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """A sealed staging of six packs, three index files, two disks in the plan; the key of the escrow is in clear."""
    staging = Staging(tmp_path / "staging")
    rng = random.Random(3)
    files: list[SealedFile] = []
    for kind, folder in ((FileKind.CONFIG, "config"), *[(FileKind.INDEX, "index")] * 3, *[(FileKind.DATA, "data")] * 6):
        data = rng.randbytes(100_000 if kind is FileKind.DATA else 500)
        digest = hashlib.sha256(data).hexdigest()
        name = {"config": "config", "index": f"index/{digest}"}.get(folder, f"data/{digest[:2]}/{digest}")
        path = staging.repository / name
        durable.make_directory(path.parent)
        path.write_bytes(data)
        files.append(SealedFile(name=name, kind=kind, size_bytes=len(data), sha256=digest))
    indexes = {files[1].name: (4, 5, 6), files[2].name: (6, 7), files[3].name: (8, 9)}
    public, private = escrow.generate()
    seed = replace(SEED, escrow_public_key=public)
    seal = Seal(
        job_name=seed.job_name,
        repository_id="ab" * 32,
        snapshot="cd" * 32,
        created="2026-01-01T00:00:00Z",
        files=tuple(files),
        indexes=indexes,
    )
    save_seed(staging, seed)
    durable.make_directory(staging.escrow)
    durable.write_file(staging.escrow / "key", private.reveal())
    save_seal(staging.seal_file, seal)
    offers = [plans.Offer(serial=serial, size_bytes=96 * MIB) for serial in ("DISK-A", "DISK-B")]
    plans.save_plan(staging.plan_file, plans.make_plan(seal, offers, spread=True))
    return staging


def names(staging: Staging) -> list[str]:
    return [pack.name for pack in load_seal(staging.seal_file).data_packs]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_repair_holds_the_packs_asked_for_and_their_index_files(staging: Staging) -> None:
    packs = names(staging)
    made = make_repair(staging, packs[2:4], drives={"DISK-A": "it never arrived"})
    whole = load_seal(staging.seal_file)
    seal = made.seal
    assert (made.job_name, made.of, made.number) == ("first-backup-r1", "first-backup", 1)
    assert made.staging.root == staging.root / "repairs/first-backup-r1"
    assert [pack.name for pack in seal.data_packs] == packs[2:4]
    assert {file.name for file in seal.of_kind(FileKind.INDEX)} == {whole.files[1].name, whole.files[2].name}
    assert seal.indexes_of(seal.data_packs[1:]) == seal.of_kind(FileKind.INDEX)[1:]
    assert not seal.of_kind(FileKind.CONFIG)
    assert (seal.repository_id, seal.snapshot) == (whole.repository_id, whole.snapshot)
    seed = load_seed(made.staging)
    assert (seed.job_name, seed.repository_id) == ("first-backup-r1", load_seed(staging).repository_id)
    assert find_repairs(staging) == (made,)


def test_a_repair_is_known_by_where_it_lies(staging: Staging, tmp_path: Path) -> None:
    made = make_repair(staging, names(staging)[:1])
    found = parse_staging(f"s:{made.staging.root}")
    assert found == made.staging
    assert (found.first, found.repository) == (staging, staging.repository)
    assert found.escrow != staging.escrow
    link = tmp_path / "link"
    link.symlink_to(made.staging.root)
    assert parse_staging(str(link)).repository.samefile(staging.repository)
    elsewhere = tmp_path / "repairs" / "first-backup-r1"
    for other in (elsewhere, staging.root / "repairs" / ".tmp-1", staging.root / "repairs", staging.root):
        assert parse_staging(str(other)).whole is None


def test_the_same_call_again_is_the_same_repair(staging: Staging) -> None:
    packs = names(staging)
    first = make_repair(staging, packs[:2])
    before = contents(staging.root)
    assert make_repair(staging, packs[:2]) == first
    assert make_repair(staging, packs[:1]) == first
    assert make_repair(staging, packs[:2], job_name="first-backup-r1") == first
    assert contents(staging.root) == before


def test_a_pack_is_in_one_repair_of_a_job_only(staging: Staging) -> None:
    packs = names(staging)
    make_repair(staging, packs[:2])
    second = make_repair(staging, packs[:4], job_name="more-of-it")
    assert [pack.name for pack in second.seal.data_packs] == packs[2:4]
    assert make_repair(staging, packs[:4], job_name="more-of-it") == second
    assert make_repair(staging, packs[:4]) == second
    assert [repair.number for repair in find_repairs(second.staging)] == [1, 2]


def test_a_repair_can_be_repaired(staging: Staging) -> None:
    first = make_repair(staging, names(staging)[:3])
    second = make_repair(first.staging, names(staging)[1:3])
    assert (second.of, second.job_name) == ("first-backup-r1", "first-backup-r2")
    assert second.staging.root.parent == first.staging.root.parent
    assert second.staging.repository == staging.repository
    assert make_repair(first.staging, names(staging)[1:3]) == second
    with pytest.raises(UsageError, match="not of this staging"):
        make_repair(first.staging, names(staging)[3:5])


@pytest.mark.parametrize(
    ("packs", "name", "error"),
    [
        ((), "", UsageError),
        (("data/00/unknown",), "", UsageError),
        ((0,), "first-backup", JobConflict),
        ((0,), "Not-A-Name", UsageError),
        ((0,), "../outside", UsageError),
        ((0,), "taken", JobConflict),
    ],
)
def test_what_cannot_be_a_repair_is_refused(
    staging: Staging, packs: Collection[str | int], name: str, error: type[Exception]
) -> None:
    make_repair(staging, names(staging)[4:], job_name="taken")
    before = contents(staging.root)
    wanted = [names(staging)[pack] if isinstance(pack, int) else pack for pack in packs]
    with pytest.raises(error):
        make_repair(staging, wanted, job_name=name)
    assert contents(staging.root) == before


def test_a_name_that_would_be_too_long_is_cut() -> None:
    seal = Seal(job_name="x", repository_id="", snapshot="", created="", files=())
    assert partial_seal(seal, (), job_name="y", created="now").files == ()
    assert _free_name("a" * 24, 7, Path("/nowhere")) == "a" * 21 + "-r7"
    assert _free_name("a" * 20 + "-bcd", 7, Path("/nowhere")) == "a" * 20 + "-r7"


def test_a_seal_that_tells_of_no_index_files_has_repairs_without(staging: Staging) -> None:
    seal = load_seal(staging.seal_file)
    old = Seal(**{**{name: getattr(seal, name) for name in Seal.__slots__}, "indexes": None})
    part = partial_seal(old, names(staging)[:1], job_name="j-r1", created="now")
    assert (len(part.files), part.indexes) == (1, None)


def test_killed_anywhere_there_is_no_half_repair_and_the_same_call_makes_it(staging: Staging) -> None:
    packs = names(staging)[:3]
    stops = 0
    while True:
        child = os.fork()
        if child == 0:  # pragma: no cover  the child is killed at its n-th sync
            count = stops

            def fsync(descriptor: int, real: object = os.fsync) -> None:
                nonlocal count
                if count == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                count -= 1
                real(descriptor)  # type: ignore[operator]

            os.fsync = fsync  # type: ignore[assignment]
            make_repair(staging, packs)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        for repair in find_repairs(staging):  # whole, or not there
            assert [pack.name for pack in repair.seal.data_packs] == packs
            assert load_seed(repair.staging).job_name == repair.job_name
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        stops += 1
    assert stops > 8
    made = make_repair(staging, packs)
    assert {path.name for path in staging.repairs.iterdir()} == {made.job_name, "repair.lock"}


def test_two_processes_do_not_make_repairs_at_once(staging: Staging) -> None:
    durable.make_directory(staging.repairs)
    lock = staging.repairs / "repair.lock"
    with durable.only_process(lock, busy="", hint=""), pytest.raises(Locked, match="makes a repair of this staging"):
        make_repair(staging, names(staging)[:1])


def test_a_damaged_record_is_told(staging: Staging) -> None:
    made = make_repair(staging, names(staging)[:1])
    path = made.staging.root / "repair.json"
    good = path.read_text()
    for text, error in (
        (good.replace("-r1", "-r9"), DataDamaged),
        (good.replace('"number": 1', '"number": "1"'), DataDamaged),
        (good.replace('"drives": {}', '"drives": {"a": 1}'), DataDamaged),
        (good.replace('"of"', '"off"'), DataDamaged),
        (good.replace('"version": 1', '"version": 2'), FormatTooNew),
        ("{", DataDamaged),
    ):
        path.write_text(text)
        with pytest.raises(error):
            find_repairs(staging)
    path.unlink()
    with pytest.raises(DataDamaged, match="is no repair"):
        find_repairs(staging)


def test_a_plan_that_is_none_is_told(staging: Staging) -> None:
    staging.plan_file.write_text('{"format": "diskprep-plan", "version": 1, "disks": [{}]}')
    with pytest.raises(DataDamaged):
        placements(staging)
    staging.plan_file.unlink()
    with pytest.raises(NotFound):
        placements(staging)


def order_for(repair: Staging, image: Path) -> work.Order:
    seed, seal = load_seed(repair), load_seal(repair.seal_file)
    wanted = target.parse(str(image), image_bytes=128 * MIB)
    plan = plans.make_plan(seal, [wanted.offer])
    plans.require_complete(plan)
    plans.save_plan(repair.plan_file, plan)
    return work.Order(
        target=wanted,
        share=plan.disks[0],
        staging=repair,
        seed=seed,
        seal_digest=seal.digest,
        container_sas=Secret("container?sig=canary-signature"),
        journal_path=image.with_suffix(".journal"),
    )


def test_a_disk_of_a_repair_is_prepared_from_the_first_repository(staging: Staging, tmp_path: Path) -> None:
    packs = names(staging)
    made = make_repair(staging, packs[1:4])
    order = order_for(made.staging, tmp_path / "DISK-C.img")
    done = prepare.prepare_disk(order, events.silent)
    assert record.recorded(made.staging, order.share, made.seal.digest).serial == "DISK-C"
    private = Secret((made.staging.escrow / "key").read_bytes())
    password = keys.load(made.staging, load_seed(made.staging), "DISK-C", private)
    assert password == done.recovery_password
    with open_for_reading(order.target.path) as device, Reader(open_disk(device, password)) as reader:
        manifest = parse_manifest(b"".join(reader.stream("DriveManifest.xml")))
    sent = {blob.blob_path.removeprefix("container/") for blob in manifest.blobs}
    assert sent == {file.name for file in made.seal.files}
    assert not (staging.root / "journals").exists()


def test_each_pack_is_looked_for_on_the_disk_that_brings_it_last(staging: Staging, tmp_path: Path) -> None:
    packs = names(staging)
    before = placements(staging)
    assert set(before) == set(packs)
    first = make_repair(staging, packs[:3])
    assert placements(staging) == before
    order_for(first.staging, tmp_path / "DISK-C.img")
    second = make_repair(first.staging, packs[:1])
    order_for(second.staging, tmp_path / "DISK-D.img")
    for asked in (staging, first.staging, second.staging):
        found = placements(asked)
        assert [found[pack] for pack in packs[:3]] == ["DISK-D", "DISK-C", "DISK-C"]
        assert all(found[pack] == before[pack] for pack in packs[3:])


def test_a_repair_takes_no_name_that_another_job_has_and_does_not_ignore_one(staging: Staging) -> None:
    packs = names(staging)[:2]
    with pytest.raises(JobConflict, match="an import job night-run"):
        make_repair(staging, packs, job_name="night-run", taken={"night-run"})
    assert not find_repairs(staging)
    made = make_repair(staging, packs, taken={"first-backup-r1"})
    assert made.job_name == "first-backup-r2"
    assert make_repair(staging, packs, job_name=made.job_name, taken={made.job_name}) == made
    with pytest.raises(JobConflict, match="first-backup-r2 sends that already"):
        make_repair(staging, packs, job_name="another-name")
    with pytest.raises(UsageError, match="cannot be the name"):
        make_repair(staging, packs, job_name="Not-A-Name")
