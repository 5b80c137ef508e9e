"""Killed, without power, with errors from the disk: the same command goes on, or starts over what cannot be trusted."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty
import pytest
from faulty import (
    IMAGE_BYTES,
    MIB,
    SIZES,
    Faults,
    break_off,
    forget,
    go_on,
    guid,
    interrupted,
    is_sealed,
    must_be_finished,
    order_of,
    points_of,
    survive,
)
from support import need, run
from test_prepare import Bench

import journal
from diskprep import events
from diskprep.disk import memory, prepare, work
from diskprep.errors import DataDamaged, JournalDamaged, ReadBackFailed
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method
from diskprep.volume.device import open_for_writing
from diskprep.volume.format import format_disk, open_disk
from diskprep.volume.ntfs import Filler, Reader, SourceFile

#: Where of all points the fast tests die: in the journal, in the file system, in the redo record, in the mirror.
SOME = tuple(number / 7 for number in range(8))
SOME_CUTS = tuple((number + 0.5) / 6 for number in range(6))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    faulty.quick(monkeypatch)
    return Bench(tmp_path, SIZES)


@pytest.fixture(scope="module")
def point_count(tmp_path_factory: pytest.TempPathFactory) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faulty.quick(patch)
        return faulty.points(order_of(Bench(tmp_path_factory.mktemp("undisturbed"), SIZES)))


@pytest.mark.parametrize("share", SOME, ids=lambda share: f"{share:.2f}")
def test_a_kill_at_any_point_and_the_same_call_goes_on(bench: Bench, point_count: int, share: float) -> None:
    survive(bench, Faults(kind="kill", at=min(int(point_count * share), point_count - 1)))


@pytest.mark.parametrize("share", SOME_CUTS, ids=lambda share: f"{share:.2f}")
def test_a_power_cut_at_any_point_and_the_same_call_goes_on(bench: Bench, point_count: int, share: float) -> None:
    survive(bench, Faults(kind="power", at=int(point_count * share), seed=int(share * 100)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "power"])
def test_every_single_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_count: int, kind: str) -> None:
    faulty.quick(monkeypatch)
    for at in range(point_count):
        for seed in (at, at + 1000) if kind == "power" else (0,):
            place = tmp_path / f"{at}-{seed}"
            place.mkdir()
            bench = Bench(place, SIZES)
            told = faulty.run(order_of(bench), Faults(kind=kind, at=at, seed=seed))
            if not told.error:  # threads: this run had a point less
                continue
            try:
                go_on(bench, over=False)
            except BaseException as error:
                error.add_note(f"{kind} at point {at}, seed {seed}")
                raise
            (place / "WD-0001.img").unlink()


@pytest.mark.parametrize("share", [0.6, 0.8, 0.99])
def test_writes_of_the_disk_itself_may_tear_anywhere(bench: Bench, share: float) -> None:
    """In-place changes of the file system too: the redo record is there before the first of them."""
    at = int(points_of(bench, "pwrite", image=True) * share)
    image = order_of(bench).target.path
    break_off(bench, Faults(kind="power", at=at, only=("pwrite",), on=image, seed=at))
    assert not is_sealed(bench, order_of(bench))
    go_on(bench, over=False)


def test_killed_again_and_again_it_still_finishes(bench: Bench) -> None:
    copied: list[int] = []
    for _ in range(12):
        told = faulty.run(order_of(bench), Faults(kind="kill", at=110))
        copied.append(len(faulty.recorded_files(order_of(bench))))
        if not told.error:
            break
    else:
        pytest.fail(f"not finished after twelve runs: {copied}")
    assert copied == sorted(copied)
    assert len(copied) > 2
    must_be_finished(bench, order_of(bench))


@pytest.mark.parametrize("step", ["claimed", "wiped", "formatted", "batch", "manifest", "verified"])
def test_a_disk_that_failed_in_mid_way_looks_finished_to_nobody(bench: Bench, step: str) -> None:
    order = order_of(bench)
    interrupted(order, step)
    assert not is_sealed(bench, order)
    go_on(bench, over=False)


def test_a_batch_that_was_broken_off_in_place_is_completed_and_not_read_again(bench: Bench) -> None:
    order = order_of(bench)
    redo = order.journal_path.with_suffix(".redo")
    break_off(bench, Faults(kind="power", at=2, only=("pwrite",), on=order.target.path, when=redo))
    assert redo.exists()
    assert not faulty.recorded_files(order)
    assert len(go_on(bench, over=False).packs_read) == len(SIZES) - 2


def test_a_disk_that_was_broken_off_is_what_other_peoples_tools_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.quick_once(monkeypatch)
    order = order_of(bench)
    redo = order.journal_path.with_suffix(".redo")
    break_off(bench, Faults(kind="power", at=4, only=("pwrite",), on=order.target.path, when=redo))
    go_on(bench, over=False)
    plain, password = bench.root / "plain.img", bench.password().reveal()
    run(need("dislocker-file"), "-V", order.target.path, "-O", str(MIB), f"-p{password}", "--", plain)
    told = run(need("ntfsfix"), "--no-action", plain)
    assert "processed successfully" in told, told
    listed = {line.split("\t")[1] for line in run(need("fls"), "-r", "-F", "-p", plain).splitlines()}
    assert {path for path in listed if not path.startswith(("$", "System Volume Information"))} == {
        "DriveManifest.xml",
        *(f"repository/{file.name}" for file in order.files()),
    }
    for file in order.files():
        content = subprocess.run(
            [need("ntfscat"), plain, f"repository/{file.name}"], check=True, capture_output=True, timeout=60
        ).stdout
        assert hashlib.sha256(content).hexdigest() == file.sha256


# What a run needs besides the disk


def test_without_memory_and_passphrase_a_disk_is_started_over_and_told_why(bench: Bench) -> None:
    interrupted(order_of(bench), "batch")
    forget(bench)
    told = go_on(bench, over=True)
    assert "recovery password is not in memory any more" in told.notes[0]


def test_without_memory_the_passphrase_suffices(bench: Bench) -> None:
    interrupted(order_of(bench), "batch", 2)
    forget(bench)
    volume = guid(order_of(bench))
    go_on(bench, over=False, escrow_key=bench.private)
    assert guid(order_of(bench)) == volume


def test_a_wrong_passphrase_does_not_stop_a_disk(bench: Bench) -> None:
    interrupted(order_of(bench), "batch")
    forget(bench)
    go_on(bench, over=True, escrow_key=Secret(bytes(range(32))))


@pytest.mark.parametrize(
    "kept", [b"", b"no password", b"\xff\xfe", b"-".join([b"000011"] * 8)], ids=["empty", "text", "bytes", "another"]
)
def test_a_password_that_was_kept_wrongly_does_not_stop_a_disk(bench: Bench, kept: bytes) -> None:
    interrupted(order_of(bench), "batch")
    for path in (bench.root / "memory").iterdir():
        path.write_bytes(kept)
    go_on(bench, over=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda order: {"container_sas": Secret("container?sig=renewed")}, "signature"),
        (lambda order: {"method": Method.AES_CBC_256}, "method"),
        (lambda order: {"share": replace(order.share, packs=order.share.packs[::-1])}, "share"),
        (lambda order: {"seal_digest": "ef" * 32}, "seal"),
    ],
    ids=["signature", "method", "share", "seal"],
)
def test_a_disk_that_was_begun_with_other_inputs_is_started_over(
    bench: Bench, change: Callable[[work.Order], dict[str, Any]], says: str
) -> None:
    interrupted(order_of(bench), "batch")
    told = go_on(bench, over=True, **change(order_of(bench)))
    assert f"another {says}" in told.notes[0]


def test_a_disk_that_carries_another_volume_is_started_over(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "batch")
    with open_for_writing(order.target.path) as device:
        format_disk(
            device,
            method=order.method,
            label="other",
            description="diskprep job test-job disk WD-0001 01/01/2026",
            recovery_password=Secret("-".join(["000011"] * 8)),
            created=work.clock.now(),
        )
    assert "does not carry the volume" in go_on(bench, over=True).notes[0]


def test_a_blank_disk_in_its_place_is_started_over(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "batch")
    os.truncate(order.target.path, 0)
    os.truncate(order.target.path, IMAGE_BYTES)
    go_on(bench, over=True)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, _flip, lambda path: os.truncate(path, path.stat().st_size - 1), lambda path: os.truncate(path, 0)],
    ids=["gone", "flipped", "short", "empty"],
)
def test_a_disk_whose_digests_are_lost_is_started_over(bench: Bench, harm: Callable[[Path], None]) -> None:
    order = order_of(bench)
    interrupted(order, "batch", 2)
    harm(order.journal_path.with_suffix(".blocks"))
    assert ".blocks" in go_on(bench, over=True).notes[0]


@pytest.mark.parametrize(
    ("harm", "at"), [("gone", 0), ("gone", 2), ("flipped", 2), ("short", 2), ("foreign", 0), ("foreign", 2)]
)
def test_a_redo_record_that_is_lost_or_damaged_is_never_followed(bench: Bench, harm: str, at: int) -> None:
    """It is needed when the changes in place were begun; then the disk is damaged, and that is noticed."""
    order = order_of(bench)
    redo = order.journal_path.with_suffix(".redo")
    break_off(bench, Faults(kind="kill", at=at, only=("pwrite",), on=order.target.path, when=redo))
    data = redo.read_bytes()
    if harm == "foreign":
        other = guid(order).encode()
        at_owner = data.index(other)
        data = data[: at_owner + 4] + b"ffff" + data[at_owner + 8 : -32]
        redo.write_bytes(data + hashlib.sha256(data).digest())
    elif harm == "flipped":
        _flip(redo)
    elif harm == "short":
        redo.write_bytes(data[:-512])
    else:
        redo.unlink()
    told = faulty.run(order_of(bench))
    if told.error:  # the file system could not even be opened for writing
        assert told.error == "ReadBackFailed"
        assert not is_sealed(bench, order)
        assert faulty.run(order_of(bench)).error == ""
    must_be_finished(bench, order)


def test_a_torn_journal_goes_on_and_the_file_as_it_was_is_kept(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "batch", 2)
    with order.journal_path.open("ab") as stream:
        stream.write(os.urandom(100) + bytes(600))
    told = go_on(bench, over=False)
    assert any("torn record" in note for note in told.notes)
    assert order.journal_path.with_name("WD-0001.journal.broken").exists()


def test_a_journal_that_lost_what_it_had_acknowledged_stops_the_run_and_its_mirror_helps(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "batch", 2)
    os.truncate(order.journal_path, order.journal_path.stat().st_size - 8)
    told = faulty.run(order_of(bench))
    assert told.error == JournalDamaged.__name__
    assert f"move {order.journal_path} away" in told.message
    order.journal_path.rename(bench.root / "away")
    go_on(bench, over=False)


def test_an_older_copy_of_the_journal_does_not_write_files_twice(bench: Bench) -> None:
    order = order_of(bench)
    mirror = bench.staging.journals / order.journal_path.name
    interrupted(order, "formatted")
    older = order.journal_path.read_bytes(), mirror.read_bytes()
    interrupted(order, "batch", 2)
    order.journal_path.write_bytes(older[0])
    mirror.write_bytes(older[1])
    assert "of which the journal does not tell" in go_on(bench, over=True).notes[0]


def test_a_volume_that_no_journal_tells_of_is_made_anew_and_that_is_told(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "batch")
    for path in (order.journal_path, bench.staging.journals / order.journal_path.name):
        path.unlink()
    assert "no journal tells of the volume" in go_on(bench).notes[0]


# What somebody did to the disk meanwhile


@pytest.mark.parametrize("deed", ["a file more", "a file less", "a directory's index", "the file table's copy"])
def test_a_disk_that_was_written_to_meanwhile_is_started_over(bench: Bench, deed: str) -> None:
    order = order_of(bench)
    interrupted(order, "batch", 2)
    interrupted(order, "resumed")  # nothing is pending: what is on the disk now counts
    names = [f"repository/{file.name}" for file in order.files()]
    with open_for_writing(order.target.path) as device:
        volume = open_disk(device, memory.recall(order.memory, guid(order)) or Secret(""))
        if deed == "a file more":
            Filler(volume).write([SourceFile(path=names[-1], size_bytes=3, blocks=lambda: iter([b"abc"]))])
        elif deed == "a file less":
            assert rewrite(volume, b"FILE", lambda block: names[0][-20:].encode("utf-16-le") in block, bytes(1024))
        elif deed == "a directory's index":
            assert rewrite(volume, b"INDX", lambda block: True, b"INDX" + b"\xff" * 508)
        else:
            with Reader(volume) as reader:
                copy = struct.unpack_from("<Q", volume.pread(512, 0), 0x38)[0] * reader.geometry.cluster_bytes
            volume.pwrite(bytes(1024), copy)
        device.sync()
    told = faulty.run(order_of(bench))
    if told.error:
        assert told.error == "ReadBackFailed"
        assert not is_sealed(bench, order)
        told = faulty.run(order_of(bench))
    assert not told.error
    assert any("is started over" in note for note in told.notes)
    must_be_finished(bench, order)


def rewrite(volume: Any, magic: bytes, which: Callable[[bytes], bool], value: bytes) -> int:
    """Write `value` over the blocks of the file system's own structures that are meant; how many there were."""
    count = 0
    for at in range(0, volume.size_bytes, 1024):
        block = volume.pread(1024, at)
        if block.startswith(magic) and which(block):
            volume.pwrite(value, at)
            count += 1
    return count


def test_a_byte_that_changed_after_it_was_written_is_found_and_the_disk_started_over(bench: Bench) -> None:
    order = order_of(bench)
    victim = max(order.files(), key=lambda file: file.size_bytes)
    real = prepare.STEPS[4].action

    def and_rot(made: work.Work) -> dict[str, Any]:
        fields = real(made)
        with Reader(volume := open_disk(made.device, made.password)) as reader:
            offset, length = reader.extents(f"repository/{victim.name}")[-1]
        place = volume.start_bytes + offset + length // 2
        made.device.pwrite(bytes([made.device.pread(1, place)[0] ^ 1]), place)
        return fields

    steps = tuple(replace(step, action=and_rot) if step.name == "manifest" else step for step in prepare.STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "STEPS", steps)
        with pytest.raises(ReadBackFailed, match=victim.name):
            prepare.prepare_disk(order, events.silent)
    assert journal.read(order.journal_path)[-1].type == "distrusted"
    assert not is_sealed(bench, order)
    assert "not what had been written" in go_on(bench, over=True).notes[0]


def test_a_damaged_staging_is_not_blamed_on_the_disk(bench: Bench) -> None:
    order = order_of(bench)
    victim = bench.staging.repository / [*order.files()][2].name
    good = victim.read_bytes()
    for bad in (good + b"x", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b""):
        victim.write_bytes(bad)
        with pytest.raises(DataDamaged, match="not what the seal says"):
            prepare.prepare_disk(order, events.silent)
    victim.write_bytes(good)
    go_on(bench, over=False)
