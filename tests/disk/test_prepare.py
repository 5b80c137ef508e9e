"""A disk from blank to sealed, on image files; what was interrupted or changed is never taken for finished."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import parse_manifest
from seeds import SEED
from support import need_root, run

import journal
from diskprep import durable, escrow, events
from diskprep.disk import keys, prepare, record, target, verify, work
from diskprep.disk import plan as plans
from diskprep.errors import (
    DataDamaged,
    DiskRefused,
    JobConflict,
    Locked,
    NotFound,
    ReadBackFailed,
    StorageUnavailable,
)
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.secrets import Secret
from diskprep.seed import Staging, save_seed
from diskprep.volume.bitlocker import Method
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Reader

MIB = 1 << 20


class Bench:
    """A staging with a few packs of random bytes, and orders over it."""

    def __init__(self, root: Path, sizes: tuple[int, ...] = (5 * MIB + 123, 4 * MIB, 700, 1)) -> None:
        self.root = root
        self.staging = Staging(root / "staging")
        self.public, self.private = escrow.generate()
        self.seed = replace(SEED, job_name="test-job", escrow_public_key=self.public)
        files = []
        for size in sizes:
            data = os.urandom(size)
            digest = hashlib.sha256(data).hexdigest()
            path = self.staging.repository / "data" / digest[:2] / digest
            durable.make_directory(path.parent)
            path.write_bytes(data)
            files.append(
                SealedFile(name=f"data/{digest[:2]}/{digest}", kind=FileKind.DATA, size_bytes=size, sha256=digest)
            )
        self.seal = Seal(
            job_name="test-job", repository_id="ab" * 32, snapshot="cd" * 32, created="now", files=tuple(files)
        )
        save_seed(self.staging, self.seed)

    def order(self, disk: str | None = None, *, size: int = 128 * MIB) -> work.Order:
        wanted = target.parse(disk or str(self.root / "WD-0001.img"), image_bytes=size)
        share = plans.make_plan(self.seal, [wanted.offer]).disks[0]
        return work.Order(
            target=wanted,
            share=share,
            staging=self.staging,
            seed=self.seed,
            seal_digest=self.seal.digest,
            container_sas=Secret("container?sig=canary-signature"),
            journal_path=self.root / "journals" / f"{share.serial}.journal",
        )

    def password(self, serial: str = "WD-0001") -> Secret[str]:
        return keys.load(self.staging, self.seed, serial, self.private)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def read_all(bench: Bench, order: work.Order) -> dict[str, bytes]:
    with open_for_reading(order.target.path) as device, Reader(open_disk(device, bench.password())) as reader:
        return {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory}


def test_a_sealed_disk_holds_the_packs_and_the_manifest_and_nothing_else(bench: Bench) -> None:
    order = bench.order()
    done = prepare.prepare_disk(order, events.silent)
    files = read_all(bench, order)
    manifest = parse_manifest(files.pop(verify.MANIFEST_PATH))
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == {
        f"repository/{pack.name}": pack.sha256 for pack in bench.seal.data_packs
    }
    assert manifest.drive_id == done.serial == "WD-0001"
    assert manifest.container_sas == order.container_sas
    assert {blob.blob_path for blob in manifest.blobs} == {f"container/{p.name}" for p in bench.seal.data_packs}
    assert bench.password() == done.recovery_password


def test_the_journal_tells_every_step_and_no_secret(bench: Bench) -> None:
    order = bench.order()
    done = prepare.prepare_disk(order, events.silent)
    _identity, *records = journal.read(order.journal_path)
    names = [record.type for record in records]
    assert [name for name in names if name != "batch"] == [step.name for step in prepare.STEPS]
    assert done.recovery_password is not None
    for path in (order.journal_path, bench.staging.journals / order.journal_path.name):
        data = path.read_bytes()
        assert done.recovery_password.reveal().encode() not in data
        assert b"canary-signature" not in data


def test_the_same_command_again_leaves_a_sealed_disk_alone(bench: Bench) -> None:
    order = bench.order()
    first = prepare.prepare_disk(order, events.silent)
    before = hashlib.sha256(order.target.path.read_bytes()).digest()
    again = prepare.prepare_disk(order, events.silent)
    assert hashlib.sha256(order.target.path.read_bytes()).digest() == before
    assert again == replace(first, recovery_password=None)
    assert record.recorded(bench.staging, order.share, bench.seal.digest) == again


def test_a_disk_that_was_replaced_since_is_prepared_again(bench: Bench) -> None:
    order = bench.order()
    first = prepare.prepare_disk(order, events.silent)
    order.target.path.write_bytes(bytes(128 * MIB))
    second = prepare.prepare_disk(bench.order(), events.silent)
    assert second.volume_guid != first.volume_guid
    assert len(read_all(bench, order)) == 5


def test_a_staging_that_changed_is_not_shipped(bench: Bench) -> None:
    order = bench.order()
    victim = bench.staging.repository / bench.seal.data_packs[0].name
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataDamaged, match="not what the seal says"):
        prepare.prepare_disk(order, events.silent)
    with pytest.raises(NotFound, match="not sealed"):
        record.recorded_disk(bench.staging, "WD-0001")


def test_read_back_finds_a_changed_byte_anywhere_in_the_files(bench: Bench) -> None:
    order = bench.order()
    done = prepare.prepare_disk(order, events.silent)
    with open_for_reading(order.target.path) as device:
        volume = open_disk(device, bench.password())
        with Reader(volume) as reader:
            pack = max(bench.seal.data_packs, key=lambda pack: pack.size_bytes)
            offset, length = reader.extents(f"repository/{pack.name}")[-1]
            place = volume.start_bytes + offset + length // 2
    with order.target.path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    with open_for_reading(order.target.path) as device, pytest.raises(ReadBackFailed):
        verify.read_back(device, bench.password(), serial="WD-0001", expected_manifest_hash=done.manifest_hash)


def test_the_manifest_of_another_disk_or_run_is_refused(bench: Bench) -> None:
    order = bench.order()
    done = prepare.prepare_disk(order, events.silent)
    for serial, expected in (("WD-0002", done.manifest_hash), ("WD-0001", "0" * 32)):
        with open_for_reading(order.target.path) as device, pytest.raises(ReadBackFailed):
            verify.read_back(device, bench.password(), serial=serial, expected_manifest_hash=expected)


def test_a_journal_of_another_job_is_refused_and_the_disk_not_touched(bench: Bench) -> None:
    order = bench.order()
    prepare.prepare_disk(order, events.silent)
    before = hashlib.sha256(order.target.path.read_bytes()).digest()
    other = replace(order, seed=replace(order.seed, job_name="other-job"))
    with pytest.raises(DiskRefused, match="belongs to job test-job"):
        prepare.prepare_disk(other, events.silent)
    elsewhere = replace(
        other, journal_path=bench.root / "elsewhere/WD-0001.journal", staging=Staging(bench.root / "s2")
    )
    with pytest.raises(DiskRefused, match="carries the data of job test-job"):
        prepare.prepare_disk(elsewhere, events.silent)
    assert hashlib.sha256(order.target.path.read_bytes()).digest() == before


def test_a_second_preparation_of_the_same_disk_at_once_is_refused(bench: Bench) -> None:
    order = bench.order()
    durable.make_directory(order.journal_path.parent)
    durable.make_directory(bench.staging.journals)
    identity = {
        "serial": "WD-0001",
        "size_bytes": order.target.size_bytes,
        "job_name": "test-job",
        "repository_id": "ab" * 32,
    }
    with journal.Journal.create(order.journal_path, identity), pytest.raises(Locked):
        prepare.prepare_disk(order, events.silent)


def test_a_sealed_disk_is_known_on_another_computer_by_the_mirror_alone(bench: Bench) -> None:
    order = bench.order()
    first = prepare.prepare_disk(order, events.silent)
    elsewhere = replace(order, journal_path=bench.root / "elsewhere/WD-0001.journal")
    assert prepare.prepare_disk(elsewhere, events.silent) == replace(first, recovery_password=None)


def test_other_inputs_than_a_sealed_disk_was_made_from_are_refused(bench: Bench) -> None:
    order = bench.order()
    prepare.prepare_disk(order, events.silent)
    for change, says in (
        ({"container_sas": Secret("container?sig=renewed")}, "signature"),
        ({"method": Method.AES_CBC_128}, "method"),
        ({"share": replace(order.share, packs=order.share.packs[:-1])}, "share"),
    ):
        with pytest.raises(DiskRefused, match=f"another {says}"):
            prepare.prepare_disk(replace(order, **change), events.silent)  # type: ignore[arg-type]


def test_a_disk_sealed_with_other_packs_than_planned_does_not_count(bench: Bench) -> None:
    order = bench.order()
    prepare.prepare_disk(order, events.silent)
    with pytest.raises(JobConflict, match="other packs"):
        record.recorded(bench.staging, replace(order.share, packs=order.share.packs[:-1]), bench.seal.digest)
    with pytest.raises(JobConflict, match="other packs"):
        record.recorded(bench.staging, order.share, "another seal")


def test_a_disk_whose_job_is_created_is_not_made_anew(bench: Bench) -> None:
    bench.staging.job_file.write_text("{}")
    with pytest.raises(DiskRefused, match="created already"):
        prepare.prepare_disk(bench.order(), events.silent)


def test_old_content_does_not_travel(bench: Bench) -> None:
    path = bench.root / "WD-0001.img"
    path.write_bytes(b"old secret plans" * (8 * MIB))
    prepare.prepare_disk(bench.order(), events.silent)
    assert b"old secret plans" not in path.read_bytes()


def test_earlier_recovery_passwords_are_kept(bench: Bench) -> None:
    first = prepare.prepare_disk(bench.order(), events.silent)
    (bench.root / "WD-0001.img").write_bytes(bytes(128 * MIB))
    second = prepare.prepare_disk(bench.order(), events.silent)
    kept = json.loads((bench.staging.escrow / "WD-0001.json").read_text())["sealed_recovery_passwords"]
    purpose = f"diskprep recovery password/{bench.seed.repository_id}/test-job/WD-0001"
    opened = [escrow.unseal(bench.private, bytes.fromhex(value), purpose) for value in kept]
    assert opened == [second.recovery_password, first.recovery_password]


def test_a_sealed_disk_has_the_recovery_password_that_opened_it_whatever_was_put_into_escrow_later(
    bench: Bench,
) -> None:
    made = prepare.prepare_disk(bench.order(), events.silent)
    kept = record.recorded_disk(bench.staging, "WD-0001")
    assert made.recovery_password is not None
    assert kept.recovery_password is None
    keys.store(bench.staging, bench.seed, "WD-0001", Secret("-".join(["000011"] * 8)))
    assert bench.password() != made.recovery_password
    opened = keys.load(bench.staging, bench.seed, "WD-0001", bench.private, opened=kept.was_opened_by)
    assert opened == made.recovery_password
    with pytest.raises(DataDamaged, match="none of the recovery passwords"):
        keys.load(bench.staging, bench.seed, "WD-0001", bench.private, opened=lambda _password: False)


def test_a_mirror_that_cannot_be_written_leaves_the_disk_unsealed(bench: Bench) -> None:
    order = bench.order()
    real = prepare.STEPS[-2].action

    def and_break_the_mirror(run: prepare._Run) -> dict[str, object]:
        run.journal._drop_mirror(OSError(5, "gone"))
        return real(run)

    steps = (*prepare.STEPS[:-2], replace(prepare.STEPS[-2], action=and_break_the_mirror), prepare.STEPS[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "STEPS", steps)
        with pytest.raises(StorageUnavailable, match="mirror"):
            prepare.prepare_disk(order, events.silent)
    assert prepare.prepare_disk(order, events.silent).manifest_hash


@pytest.mark.parametrize(
    "step",
    [
        "batch",
        *(
            pytest.param(step, marks=pytest.mark.slow)
            for step in ("claimed", "wiped", "formatted", "manifest", "verified")
        ),
    ],
)
def test_a_kill_after_any_step_leaves_an_unfinished_disk_and_the_same_command_finishes_it(
    tmp_path: Path, step: str
) -> None:
    bench = Bench(tmp_path, (2 * MIB, 700))
    script = textwrap.dedent(
        """
        import os, pickle, signal, sys
        from pathlib import Path
        import journal
        from diskprep import events
        from diskprep.disk import prepare
        sys.path[:0] = sys.argv[3:]
        from test_prepare import Bench
        real = journal.Journal.append
        def append(self, type_, /, **fields):
            number = real(self, type_, **fields)
            if type_ == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)
            return number
        journal.Journal.append = append
        bench = Bench.__new__(Bench)
        bench.__dict__.update(pickle.loads(Path(sys.argv[1]).read_bytes()))
        prepare.prepare_disk(bench.order(), events.silent)
        """
    )
    state = {name: value for name, value in vars(bench).items() if name != "private"}
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "state", step, *(Path(__file__).parents[:2])],
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(NotFound, match="not sealed"):
        record.recorded_disk(bench.staging, "WD-0001")
    order = bench.order()
    prepare.prepare_disk(order, events.silent)
    assert len(read_all(bench, order)) == 3


@pytest.mark.root
def test_a_loop_device_is_prepared_like_an_image(bench: Bench) -> None:
    need_root()
    image = bench.root / "backing.img"
    run("truncate", "-s", "128M", image)
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        order = bench.order(f"{loop},serial=WD-0001")
        assert order.target.facts is not None
        prepare.prepare_disk(order, events.silent)
        assert len(read_all(bench, order)) == 5
        run("sgdisk", "-v", loop)
    finally:
        run("losetup", "--detach", loop)


@pytest.mark.root
def test_a_loop_device_that_is_mounted_is_refused(bench: Bench) -> None:
    need_root()
    image, point = bench.root / "backing.img", bench.root / "mnt"
    point.mkdir()
    run("truncate", "-s", "128M", image)
    run("mkfs.ext4", "-q", image)
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", loop, point)
        try:
            (point / "precious").write_text("mine")
            with pytest.raises(DiskRefused, match="mounted at"):
                bench.order(f"{loop},serial=WD-0001")
        finally:
            run("umount", point)
        run("mount", loop, point)
        assert (point / "precious").read_text() == "mine"
        run("umount", point)
    finally:
        run("losetup", "--detach", loop)
