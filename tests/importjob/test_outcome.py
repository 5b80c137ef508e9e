"""The report: each published word is told in human ones; a drive arrived only when somebody says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from diskprep.exchange.copylog import BlobStatus, BlockStatus, DispositionStatus, DriveStatus, FileStatus
from diskprep.exchange.databoxlog import RENAMED, Category
from diskprep.exchange.logsummary import FileOutcome, LogForm, LogSummary
from diskprep.importjob import words
from diskprep.importjob.model import DriveState, Job, JobState
from diskprep.importjob.model import DriveStatus as JobDrive
from diskprep.importjob.outcome import Fate, Report, plan_repair, report, serial_of

PACKS = [f"data/{number:02x}/{number:064x}" for number in range(6)]
PLACEMENT = {pack: "WD-A" if number < 3 else "WD-B" for number, pack in enumerate(PACKS)}
INDEX = "index/" + "f" * 64


def job(*drives: JobDrive, state: JobState | str = JobState.CLOSED, cancelled: bool = False) -> Job:
    return Job(
        name="first-backup",
        location="westeurope",
        storage_account_id="id",
        state=state,
        drives=drives,
        cancel_requested=cancelled,
    )


def drive(serial: str = "WD-A", state: DriveState | str = DriveState.SHIPPED_BACK, copy: str = "Completed") -> JobDrive:
    return JobDrive(drive_id=serial, state=state, copy_status=copy)


def log(
    status: str,
    failed: Sequence[str] = (),
    *,
    told: Sequence[FileOutcome] = (),
    unlisted: int = 0,
    serial: str = "WD-A",
) -> LogSummary:
    files = tuple(
        FileOutcome(
            status="CompletedWithErrors",
            blob_path=f"imported/{name}",
            file_path="\\repository\\" + name.replace("/", "\\"),
            parts=(("Corrupted", 1), ("Uncommitted", 3)),
        )
        for name in failed
    )
    return LogSummary(
        form=LogForm.CLASSIC, drive_id=serial, status=status, failed=files, told=tuple(told), unlisted=unlisted
    )


def fates(outcome: Report) -> list[Fate]:
    return [found.fate for found in outcome.drives]


def test_every_published_word_has_words_of_its_own() -> None:
    assert [status for status in DriveStatus if status not in words.DRIVES] == []
    assert [status for status in BlobStatus if status not in words.FILES] == []
    assert [status for status in BlockStatus if status not in words.PARTS] == []
    assert [status for status in FileStatus if status not in words.SIDE_FILES] == []
    assert [category for category in Category if category not in {*words.FILES, *words.TOLD}] == []
    assert words.TOLD.keys() >= RENAMED
    fine = (DispositionStatus.CREATED, DispositionStatus.OVERWRITTEN)
    assert [status for status in DispositionStatus if status not in (*words.TOLD, *fine)] == []
    for told in (*words.DRIVES.values(), *words.FILES.values(), *words.TOLD.values()):
        assert told.says
        assert not told.says.endswith(".")
        assert not told.todo or told.todo.endswith(".")


@pytest.mark.parametrize(
    "status",
    [
        *(status for status in DriveStatus if not status.startswith("Completed")),
        *("HardwareError", "DeviceFormatted", "UnsupportedDrive", "DriveCorrupted", "Disk corrupted", "Melted"),
    ],
)
def test_a_drive_that_was_not_read_brought_nothing(status: str) -> None:
    outcome = report(job(drive(copy=status)), {})
    (found,) = outcome.drives
    assert found.fate is Fate.FAILED
    assert found.says in "\n".join(outcome.lines())
    assert found.todo
    assert set(plan_repair(outcome, PLACEMENT).packs) == set(PACKS[:3])


@pytest.mark.parametrize("label", ["Failed", "NotReturned", "StorageAccountNotAccessible", "BitLocker key invalid"])
def test_the_words_of_the_data_box_era_are_known(label: str) -> None:
    assert label not in words.of_drive(label).says
    assert report(job(drive(copy=label)), {}).drives[0].fate is Fate.FAILED


@pytest.mark.parametrize(
    ("given", "state", "cancelled", "fate"),
    [
        (drive(state=DriveState.COMPLETED, copy=""), JobState.TRANSFERRING, False, Fate.ARRIVED),
        (drive(copy="Completed"), JobState.CLOSED, False, Fate.ARRIVED),
        (drive(copy="CompletedWithWarnings"), JobState.COMPLETED, False, Fate.ARRIVED),
        (drive(copy=""), JobState.COMPLETED, False, Fate.ARRIVED),
        (drive(copy="InProgress"), JobState.COMPLETED, False, Fate.ARRIVED),
        (drive(copy=""), JobState.COMPLETED, True, Fate.FAILED),
        (drive(copy=""), JobState.CLOSED, False, Fate.FAILED),
        (drive(copy="CompletedWithErrors"), JobState.CLOSED, False, Fate.IN_PART),
        (drive(state=DriveState.COMPLETED_MORE_INFO, copy=""), JobState.PACKAGING, False, Fate.IN_PART),
        (drive(state=DriveState.SPECIFIED, copy=""), JobState.SHIPPING, False, Fate.WAITING),
        (drive(state=DriveState.RECEIVED, copy=""), JobState.TRANSFERRING, False, Fate.WAITING),
        (drive(state=DriveState.TRANSFERRING, copy="InProgress"), JobState.TRANSFERRING, False, Fate.WAITING),
        (drive(state=DriveState.TRANSFERRING, copy="HardwareError"), JobState.TRANSFERRING, False, Fate.WAITING),
        (drive(state="Dancing", copy=""), "Resting", False, Fate.WAITING),
        (drive(state=DriveState.SPECIFIED, copy=""), JobState.CLOSED, False, Fate.LOST),
        (drive(state=DriveState.NEVER_RECEIVED, copy=""), JobState.CLOSED, False, Fate.LOST),
        (drive(state=DriveState.NEVER_RECEIVED, copy=""), JobState.SHIPPING, False, Fate.WAITING),
    ],
)
def test_what_the_job_alone_tells(given: JobDrive, state: JobState | str, cancelled: bool, fate: Fate) -> None:
    assert fates(report(job(given, state=state, cancelled=cancelled), {})) == [fate]


def test_a_log_has_the_last_word() -> None:
    given = job(drive(copy="InProgress"))
    assert fates(report(given, {"WD-A": log("Completed")})) == [Fate.ARRIVED]
    assert fates(report(given, {"WD-A": log("ManifestCorrupted")})) == [Fate.FAILED]
    assert fates(report(job(drive()), {"WD-A": log("Completed", PACKS[:1])})) == [Fate.IN_PART]
    assert fates(report(job(drive(copy="")), {"WD-A": log("", PACKS[:1])})) == [Fate.IN_PART]
    box = replace(log("Failed", PACKS[:1]), form=LogForm.DATA_BOX)
    assert fates(report(job(drive(copy="Failed")), {"WD-A": box})) == [Fate.IN_PART]


def test_of_a_drive_with_errors_the_failed_packs_are_sent_again() -> None:
    outcome = report(
        job(drive(copy="CompletedWithErrors"), drive("WD-B")), {"WD-A": log("CompletedWithErrors", [PACKS[1], INDEX])}
    )
    plan = plan_repair(outcome, PLACEMENT)
    assert list(plan.packs) == [PACKS[1]]
    assert plan.packs[PACKS[1]] == (
        "did not arrive whole; blocks that are not what the manifest says: 1; "
        "blocks that arrived, but wait for the others: 3"
    )
    assert (plan.disks, plan.waiting, plan.spared) == ((), (), 1)
    assert list(plan.drives) == ["WD-A"]
    assert set(plan_repair(outcome, PLACEMENT, same_disk=True).packs) == set(PACKS[:3])
    assert plan_repair(outcome, PLACEMENT, same_disk=True).disks == ("WD-A",)


def test_where_only_an_index_file_failed_nothing_is_sent_again() -> None:
    outcome = report(job(drive(copy="CompletedWithErrors")), {"WD-A": log("CompletedWithErrors", [INDEX])})
    plan = plan_repair(outcome, PLACEMENT)
    assert (dict(plan.packs), plan.spared, dict(plan.drives)) == ({}, 1, {})


@pytest.mark.parametrize(
    "found", [{}, {"WD-A": log("CompletedWithErrors", PACKS[:1], unlisted=1)}, {"WD-A": log("CompletedWithErrors")}]
)
def test_where_no_log_names_all_failures_the_whole_drive_is_sent_again(found: dict[str, LogSummary]) -> None:
    outcome = report(job(drive(copy="CompletedWithErrors")), found)
    assert not outcome.drives[0].files_known
    assert "does not name all files that failed" in "\n".join(outcome.lines())
    assert set(plan_repair(outcome, PLACEMENT).packs) == set(PACKS[:3])


def test_what_is_in_the_container_is_not_sent_again_and_what_is_not_is() -> None:
    outcome = report(job(drive(copy="CompletedWithErrors"), drive("WD-B")), {})
    plan = plan_repair(outcome, PLACEMENT, present={*PACKS[1:4], PACKS[5]})
    assert set(plan.packs) == {PACKS[0], PACKS[4]}
    assert plan.packs[PACKS[4]] == "it is not in the container, though its drive was copied"
    assert set(plan.drives) == {"WD-A", "WD-B"}
    assert not plan_repair(outcome, PLACEMENT, present=PACKS).packs


def test_a_drive_that_may_still_come_is_waited_for_unless_it_is_given_up() -> None:
    given = job(drive(state=DriveState.NEVER_RECEIVED, copy=""), drive("WD-B"), state=JobState.SHIPPING)
    plan = plan_repair(report(given, {}), PLACEMENT)
    assert (dict(plan.packs), plan.waiting) == ({}, ("WD-A",))
    plan = plan_repair(report(given, {}, lost=["wd-a"]), PLACEMENT)
    assert set(plan.packs) == set(PACKS[:3])
    assert (plan.disks, plan.waiting) == (("WD-A",), ())


def test_renamed_and_skipped_files_are_told_as_such() -> None:
    told = [
        FileOutcome(status="Completed", blob_path="imported/a (2)", disposition="Renamed"),
        FileOutcome(status="Completed", blob_path="imported/b", disposition="Skipped"),
        FileOutcome(status="Completed", blob_path="imported/c", disposition="Created", properties="Corrupted"),
        FileOutcome(status="ContainerRenamed", blob_path="CON", message="to: databox-1", code="1"),
    ]
    outcome = report(job(drive(copy="CompletedWithWarnings")), {"WD-A": log("CompletedWithWarnings", told=told)})
    text = "\n".join(outcome.lines())
    assert outcome.complete
    for line in (
        "imported/a (2) was there already; the disk's came under another name",
        "imported/b was there already and was left as it is",
        "imported/c arrived, but not its metadata or properties; its properties file is not what the manifest says",
        "CON is a container that was given another name; the service says: to: databox-1 (1)",
    ):
        assert line in text


def test_packs_are_found_by_the_paths_of_all_generations() -> None:
    files = [
        FileOutcome(status="IOFailed", file_path="\\repository\\" + PACKS[0].replace("/", "\\")),
        FileOutcome(status="UploadErrorWin32", blob_path=f"imported/{PACKS[1]}"),
        FileOutcome(status="UploadErrorWin32", blob_path="imported\\" + PACKS[2].replace("/", "\\")),
        FileOutcome(status="IOFailed", blob_path=f"imported/{PACKS[3]} (2)", file_path=f"\\x\\{PACKS[3]}"),
        FileOutcome(status="IOFailed", blob_path=f"imported/{PACKS[4]}x", file_path=""),
    ]
    drives = (drive(copy="CompletedWithErrors"), drive("WD-B", copy="CompletedWithErrors"))
    found = {
        "WD-A": replace(log("CompletedWithErrors"), failed=tuple(files[:3])),
        "WD-B": replace(log("CompletedWithErrors"), failed=tuple(files[3:])),
    }
    assert list(plan_repair(report(job(*drives), found), PLACEMENT).packs) == PACKS[:4]


def test_a_log_is_assigned_by_its_drive_id_its_name_or_because_there_is_one_drive() -> None:
    two, one = job(drive(), drive("WD-B")), job(drive())
    assert serial_of(two, log("x", serial="wd-b"), "any.xml") == "WD-B"
    assert serial_of(two, log("x", serial="a-guid"), "order_WD-B_CopyLog_1.xml") == "WD-B"
    assert serial_of(two, log("x", serial="a-guid"), "any.xml") == ""
    assert serial_of(one, log("x", serial="OTHER"), "any.xml") == ""
    assert serial_of(one, log("x", serial=""), "any.xml") == "WD-A"


def test_long_lists_are_cut_for_people_and_whole_as_json() -> None:
    outcome = report(job(drive(copy="x")), {"WD-A": log("CompletedWithErrors", [f"f{n}" for n in range(30)])})
    lines = list(outcome.lines(shown=5))
    assert sum("imported/f" in line for line in lines) == 5
    assert any(line.strip() == "and 25 more" for line in lines)
    document = outcome.document()
    assert len(document["drives"][0]["failed"]) == 30
    assert (document["complete"], document["ended"], document["drives"][0]["fate"]) == (False, True, "in part")


def test_nobody_is_told_to_use_a_dead_disk_again() -> None:
    for told in words.DRIVES.values():
        assert not ("Do not use it again" in told.todo and "this disk" in told.todo)
