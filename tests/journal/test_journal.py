"""The journal keeps its promises: exact prefix or explicit error, whatever happened to the file."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import journal
from journal import frames

IDENTITY = {"serial": "WD-1", "size_bytes": 1 << 40}


def make(path: Path, count: int, **kwargs: object) -> bytes:
    with journal.Journal.create(path, IDENTITY) as log:
        for number in range(count):
            log.append("step", number=number, text="x" * (number * 7 % 50), **kwargs)
    return path.read_bytes()


def test_records_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    with journal.Journal.create(path, IDENTITY) as log:
        assert log.records == ()
        assert log.append("claimed", who="ü", list=[1, None, {"b": 2, "a": 1.5}]) == 1
        assert log.append("formatted") == 2
    with journal.Journal.open(path) as log:
        assert log.identity == IDENTITY
        assert log.broken is None
        assert [(r.sequence, r.type) for r in log.records] == [(1, "claimed"), (2, "formatted")]
        assert log.records[0].fields == {"who": "ü", "list": [1, None, {"b": 2, "a": 1.5}]}
        assert log.append("sealed") == 3
    assert [r.type for r in journal.read(path)] == ["journal", "claimed", "formatted", "sealed"]
    assert "formatted" in journal.dump(journal.read(path))


def test_creating_never_replaces_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    before = make(path, 2)
    with pytest.raises(journal.JournalFailed) as caught:
        journal.Journal.create(path, IDENTITY)
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.journal"]


def test_what_cannot_be_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    with journal.Journal.create(path, IDENTITY) as log:
        with pytest.raises((ValueError, TypeError)):
            log.append("step", value=float("nan"))
        with pytest.raises(TypeError):
            log.append("step", value=b"bytes")
        with pytest.raises(ValueError, match="limit"):
            log.append("step", value="x" * (1 << 20))
        log.append("step", value=1)
    assert len(journal.read(path)) == 2


def unacknowledged(data: bytes, keep: int) -> bytes:
    """The same journal as after a power cut: its marks acknowledge the first `keep` records only."""
    replay = frames.replay(data)
    out = bytearray(data)
    for count in (keep, max(keep - 1, 0)):
        offset = frames.mark_offset(count)
        out[offset : offset + frames.PAGE_BYTES] = frames.encode_mark(replay.journal_id, replay.marks[count])
    return bytes(out)


def check_prefix(data: bytes, whole: list[journal.Record], path: Path) -> int | None:
    """The number of records read from `data`, which are a prefix of `whole`; None after an explicit error."""
    path.write_bytes(data)
    try:
        found = journal.read(path)
    except journal.JournalDamaged:
        return None
    assert found == whole[: len(found)]
    return len(found)


@pytest.mark.parametrize("acknowledged", [1, 20, 21])
def test_every_truncation_gives_a_prefix_with_all_acknowledged_records_or_an_error(
    tmp_path: Path, acknowledged: int
) -> None:
    path = tmp_path / "d.journal"
    data = unacknowledged(make(path, 20), acknowledged)
    whole = journal.read(path)
    ends = [mark.end for mark in frames.replay(data).marks]
    for length in range(len(data)):
        if 0 < length < frames.FIRST_FRAME and length % 7:
            continue
        found = check_prefix(data[:length], whole, path)
        if length < ends[acknowledged]:
            assert found is None
        else:
            assert found == sum(end <= length for end in ends) - 1


def test_every_flipped_bit_gives_a_prefix_or_an_error(tmp_path: Path) -> None:
    data = make(tmp_path / "d.journal", 3)
    whole = frames.replay(data).records
    marks = range(frames.PAGE_BYTES, frames.FIRST_FRAME)
    silent = 0
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            found = frames.replay(bytes(flipped)).records
        except frames.JournalDamaged:
            continue
        silent += 1
        assert found == whole
        assert position // 8 in marks, "only one of the two marks may be lost without harm"
    assert silent <= 2 * frames.PAGE_BYTES * 8


def test_a_torn_tail_is_cut_and_the_original_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    data = unacknowledged(make(path, 5), 5)
    start, end = frames.replay(data).marks[5].end, len(data)
    tails = [data[start : end - 1], b"\0" * 4096, os.urandom(700), data[start : start + 9], b"\xff" * 40]
    for number, tail in enumerate(tails):
        path.write_bytes(data[:start] + tail)
        with journal.Journal.open(path) as log:
            assert [r.fields["number"] for r in log.records] == [0, 1, 2, 3]
            assert log.broken is not None
            assert log.broken.read_bytes() == data[:start] + tail
            assert log.broken.name == ("d.journal.broken" if not number else f"d.journal.broken-{number + 1}")
            log.append("after")
        assert [r.type for r in journal.read(path)][-2:] == ["step", "after"]


def test_a_whole_record_that_was_not_acknowledged_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    path.write_bytes(unacknowledged(make(path, 5), 4))
    with journal.Journal.open(path) as log:
        assert len(log.records) == 5
        assert log.broken is None
    assert frames.replay(path.read_bytes()).marks[-1].count == 6


def split(data: bytes) -> tuple[bytes, list[bytes]]:
    ends = [mark.end for mark in frames.replay(data).marks]
    return data[: ends[0]], [data[a:b] for a, b in itertools.pairwise(ends)]


def test_records_swapped_repeated_or_removed_are_found(tmp_path: Path) -> None:
    data = make(tmp_path / "d.journal", 8)
    for acknowledged in (2, 9):
        head, parts = split(unacknowledged(data, acknowledged))
        for i in range(2, len(parts) - 1):
            changed = {
                "removed": parts[:i] + parts[i + 1 :],
                "repeated": parts[: i + 1] + parts[i:],
                "swapped": [*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]],
            }
            for tampered in changed.values():
                with pytest.raises(journal.JournalDamaged, match=r"moved|acknowledged"):
                    frames.replay(head + b"".join(tampered))


def test_the_tail_of_another_journal_is_found(tmp_path: Path) -> None:
    mine, parts = split(unacknowledged(make(tmp_path / "a.journal", 6), 4))
    _, others = split(make(tmp_path / "b.journal", 6))
    with pytest.raises(journal.JournalDamaged, match="another one"):
        frames.replay(mine + b"".join(parts[:4] + others[4:]))


def test_marks_of_another_journal_are_found(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "a.journal", 2), make(tmp_path / "b.journal", 2)
    with pytest.raises(journal.JournalDamaged, match="another journal"):
        frames.replay(mine[:4096] + other[4096:12288] + mine[12288:])


def test_every_zeroed_or_foreign_sector_gives_a_prefix_or_an_error(tmp_path: Path) -> None:
    data, other = make(tmp_path / "a.journal", 40), make(tmp_path / "b.journal", 40)
    whole = frames.replay(data).records
    for offset in range(0, len(data), 512):
        for sector in (b"\0" * 512, other[offset : offset + 512], data[offset - 512 : offset] or b"\1" * 512):
            changed = (data[:offset] + sector + data[offset + 512 :])[: len(data)]
            try:
                assert frames.replay(changed).records == whole
            except frames.JournalDamaged:
                continue


def test_power_cut_keeps_every_acknowledged_record(tmp_path: Path) -> None:
    """What was written since the last sync (a mark, a frame) may be there or not, sector by sector."""
    path = tmp_path / "d.journal"
    log = journal.Journal.create(path, IDENTITY)
    for number in range(6):
        log.append("step", number=number, text="y" * 1500)
        synced = path.read_bytes()  # the mark of this record is not synced yet: the older one may be what survives
        replay = frames.replay(synced)
        count = len(replay.records)
        frame, _ = frames.encode_frame(count, frames.encode_payload("step", {"text": "z" * 1500}), replay.chain)
        old_mark = frames.encode_mark(replay.journal_id, replay.marks[count - 1])
        pages = len(frame) // 512 + 1
        for subset in range(1 << pages):
            tail = b"".join(
                frame[i * 512 : (i + 1) * 512] if subset >> i & 1 else b"\0" * len(frame[i * 512 : (i + 1) * 512])
                for i in range(pages)
            )
            for torn_mark in (False, True):
                state = bytearray(synced + tail)
                if torn_mark:
                    at = frames.mark_offset(count)
                    state[at : at + 512] = os.urandom(512)
                    at = frames.mark_offset(count - 1)
                    state[at : at + frames.PAGE_BYTES] = old_mark
                found = frames.replay(bytes(state)).records
                assert found[:count] == replay.records
                assert len(found) <= count + 1
    log.close()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    with journal.Journal.create(path, IDENTITY) as log:
        with pytest.raises(journal.JournalLocked):
            journal.Journal.open(path)
        log.append("step")
        assert len(journal.read(path)) == 2
    journal.Journal.open(path).close()


def test_not_a_journal_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    for content in (b"", b"x", b"\0" * 20000, os.urandom(20000)):
        path.write_bytes(content)
        with pytest.raises(journal.JournalDamaged, match=r"d\.journal"):
            journal.Journal.open(path)
        assert path.read_bytes() == content
    with pytest.raises(journal.JournalFailed) as caught:
        journal.read(tmp_path / "absent")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, OSError)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    data = make(tmp_path / "d.journal", 1)
    header = frames._page(frames._HEADER.pack(frames._MAGIC, 2, b"i" * 16))
    with pytest.raises(journal.JournalDamaged, match="version 2"):
        frames.replay(header + data[4096:])


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_failed_write_or_sync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "d.journal"
    log = journal.Journal.create(path, IDENTITY)
    log.append("kept")

    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, "bad")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(journal.JournalFailed) as caught:
            log.append("lost")
        assert caught.value.errno == errno.EIO
    for _ in range(2):
        with pytest.raises(journal.JournalFailed):
            log.append("never")
    log.close()
    assert [r.type for r in journal.read(path)][:2] == ["journal", "kept"]
    assert "never" not in journal.dump(journal.read(path))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:5], offset))
    make(tmp_path / "d.journal", 3)
    assert len(journal.read(tmp_path / "d.journal")) == 4


def test_every_append_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pwrite", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    with journal.Journal.create(tmp_path / "d.journal", IDENTITY) as log:
        for _ in range(3):
            calls.clear()
            log.append("step")
            assert calls == ["pwrite", "fdatasync", "pwrite"]


def test_the_mirror_is_the_same_bytes(tmp_path: Path) -> None:
    path, mirror = tmp_path / "d.journal", tmp_path / "m.journal"
    with journal.Journal.create(path, IDENTITY, mirror=mirror) as log:
        log.append("one")
        assert mirror.read_bytes() == path.read_bytes()
    mirror.unlink()
    with journal.Journal.open(path, mirror=mirror) as log:
        log.append("two")
    assert mirror.read_bytes() == path.read_bytes()
    mirror.write_bytes(mirror.read_bytes()[:-20])
    with journal.Journal.open(path, mirror=mirror) as log:
        log.append("three")
    assert mirror.read_bytes() == path.read_bytes()
    assert (tmp_path / "m.journal.broken").exists()


def test_a_failing_mirror_is_reported_and_does_not_stop_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    with journal.Journal.create(path, IDENTITY, mirror=tmp_path / "absent" / "m.journal") as log:
        assert "absent" in log.mirror_error
        log.append("one")
    mirror = tmp_path / "m.journal"
    with journal.Journal.open(path, mirror=mirror) as log:
        assert not log.mirror_error
        os.close(log._mirror._descriptor)
        log.append("two")
        assert "m.journal" in log.mirror_error
        log.append("three")
    assert len(journal.read(path)) == 4
    assert len(journal.read(mirror)) == 2


def test_a_mirror_that_disagrees_is_refused(tmp_path: Path) -> None:
    path, mirror = tmp_path / "d.journal", tmp_path / "m.journal"
    older = make(path, 2)
    with journal.Journal.open(path, mirror=mirror) as log:
        log.append("more")
    path.write_bytes(older)
    with pytest.raises(journal.JournalDamaged, match="old copy"):
        journal.Journal.open(path, mirror=mirror)
    with journal.Journal.open(path) as log:
        log.append("different")
    with pytest.raises(journal.JournalDamaged, match="different records"):
        journal.Journal.open(path, mirror=mirror)
    mirror.unlink()
    make(mirror, 1)
    with pytest.raises(journal.JournalDamaged, match="mirrors journal"):
        journal.Journal.open(path, mirror=mirror)
    path.unlink()
    with journal.Journal.create(path, IDENTITY, mirror=mirror) as log:
        log.append("new")
    assert (tmp_path / "m.journal.old").exists()
    assert mirror.read_bytes() == path.read_bytes()


WRITER = """
import sys, pathlib, journal
path = pathlib.Path(sys.argv[1])
log = journal.Journal.open(path)
while True:
    sys.stdout.write(f"{log.append('step', text='k' * 200)}\\n")
    sys.stdout.flush()
"""


def test_kill_9_loses_no_acknowledged_record(tmp_path: Path) -> None:
    path = tmp_path / "d.journal"
    make(path, 0)
    acknowledged = 0
    for turn in range(12):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(3 + turn * 5):
                acknowledged = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                acknowledged = int(line) if line.endswith("\n") else acknowledged
        records = journal.read(path)
        assert len(records) in (acknowledged + 1, acknowledged + 2)
        assert [record.sequence for record in records] == list(range(len(records)))
    assert acknowledged > 300
