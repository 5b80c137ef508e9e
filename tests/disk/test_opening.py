"""Whose journal it is, is known before a mirror is written: a refusal leaves nothing behind that refuses for ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_prepare import Bench

import journal
from diskprep import durable, events
from diskprep.disk import opening, prepare, record, work
from diskprep.errors import DiskRefused, JournalDamaged, StorageUnavailable
from diskprep.seed import Staging
from diskprep.volume.device import create_image

MIB = 1 << 20


@pytest.fixture
def first(tmp_path: Path) -> work.Order:
    """A disk that was sealed for the job `test-job`."""
    order = Bench(tmp_path, (5 * MIB, 700)).order()
    prepare.prepare_disk(order, events.silent)
    return order


@pytest.fixture
def second(first: work.Order, tmp_path: Path) -> work.Order:
    """The same disk, erased by hand, for another job in another staging, whose packs are the same."""
    first.target.path.unlink()
    create_image(first.target.path, first.target.size_bytes)
    with first.target.path.open("rb") as stream:
        assert not any(stream.read(MIB))
    bench = Bench(tmp_path / "other", (5 * MIB, 700))
    order = bench.order(str(first.target.path))
    return replace(order, seed=replace(order.seed, job_name="other-job"), journal_path=first.journal_path)


def mirror_of(order: work.Order) -> Path:
    return order.staging.journals / order.journal_path.name


def test_a_refused_disk_leaves_no_mirror_and_is_taken_with_another_journal_folder(
    second: work.Order, tmp_path: Path
) -> None:
    with pytest.raises(DiskRefused, match="belongs to job test-job") as refused:
        prepare.prepare_disk(second, events.silent)
    assert "--journals DIR" in refused.value.hint
    assert not mirror_of(second).exists()
    again = replace(second, journal_path=tmp_path / "new" / second.journal_path.name)
    made = prepare.prepare_disk(again, events.silent)
    assert record.recorded_disk(second.staging, "WD-0001") == replace(made, recovery_password=None)


@pytest.mark.parametrize("own_journal", [False, True])
def test_the_mirror_of_another_job_is_moved_aside(
    first: work.Order, second: work.Order, tmp_path: Path, own_journal: bool
) -> None:
    poison = first.journal_path.read_bytes()
    durable.make_directory(second.staging.journals)
    again = replace(second, journal_path=tmp_path / "new" / second.journal_path.name)
    if own_journal:
        opening.open_journal(again).close()
    for name in ("", ".old"):
        mirror_of(second).with_name(mirror_of(second).name + name).write_bytes(poison)
    prepare.prepare_disk(again, events.silent)
    assert mirror_of(second).with_name("WD-0001.journal.old-2").read_bytes() == poison
    assert mirror_of(second).with_name("WD-0001.journal.old").read_bytes() == poison
    assert record.recorded_disk(second.staging, "WD-0001").serial == "WD-0001"


def test_a_disk_of_another_size_takes_the_place_of_one_that_was_not_finished_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, (700,))
    order = bench.order()
    opening.open_journal(order).close()
    larger = replace(
        order,
        target=replace(order.target, size_bytes=order.target.size_bytes + MIB),
        journal_path=tmp_path / "new/WD-0001.journal",
    )
    with opening.open_journal(larger) as log:
        assert log.identity["size_bytes"] == larger.target.size_bytes
    order.journal_path.unlink()
    larger.journal_path.unlink()
    mirror_of(order).unlink()
    prepare.prepare_disk(order, events.silent)
    kept = mirror_of(order).read_bytes()
    with pytest.raises(DiskRefused, match="another disk with the serial number WD-0001, which is sealed"):
        opening.open_journal(larger)
    assert mirror_of(order).read_bytes() == kept


def test_a_damaged_mirror_is_named_where_it_is_all_there_is_and_mended_elsewhere(tmp_path: Path) -> None:
    order = Bench(tmp_path, (700,)).order()
    opening.open_journal(order).close()
    whole = mirror_of(order).read_bytes()
    mirror_of(order).write_bytes(b"no journal")
    opening.open_journal(order).close()
    assert mirror_of(order).read_bytes()[12288:] == whole[12288:]
    mirror_of(order).write_bytes(b"no journal")
    order.journal_path.unlink()
    with pytest.raises(JournalDamaged) as damaged:
        opening.open_journal(order)
    assert str(mirror_of(order)) in damaged.value.hint
    assert not order.journal_path.exists()
    mirror_of(order).unlink()
    opening.open_journal(order).close()
    assert journal.read(mirror_of(order))[0].fields["serial"] == "WD-0001"


def test_a_folder_that_cannot_hold_journals_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    order = replace(Bench(tmp_path, (700,)).order(), journal_path=tmp_path / "file/journals/WD-0001.journal")
    with pytest.raises(StorageUnavailable) as refused:
        opening.open_journal(order)
    assert "--journals DIR" in refused.value.hint


def test_an_image_is_deleted_and_not_wiped(first: work.Order, tmp_path: Path) -> None:
    other = replace(
        first,
        seed=replace(first.seed, job_name="other-job"),
        staging=Staging(tmp_path / "s2"),
        journal_path=tmp_path / "new/WD-0001.journal",
    )
    with pytest.raises(DiskRefused, match="carries the data of job test-job") as refused:
        prepare.prepare_disk(other, events.silent)
    assert refused.value.hint.endswith(f"delete the image: rm {first.target.path}")
    with pytest.raises(DiskRefused, match="sealed already, with another") as refused:
        prepare.prepare_disk(replace(first, seal_digest="0" * 64), events.silent)
    assert refused.value.hint.endswith(f"rm {first.target.path}")
