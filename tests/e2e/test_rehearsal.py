"""The whole journey as a user walks it, on the command line, and what --keep leaves for other tools."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import diskprep, diskprep_json, make_tree, need, plain_user, run

from diskprep import events
from diskprep.rehearsal import journey

STAGES = [
    "stage",
    "disks",
    "import job",
    "shipping",
    "online",
    "incremental 1",
    "datacenter",
    "ingest",
    "incremental 2",
    "restore 1",
    "compare 1",
    "restore 2",
    "compare 2",
    "restore 3",
    "compare 3",
    "cleanup",
]


@dataclass(frozen=True)
class Kept:
    source: Path
    root: Path
    summary: dict[str, Any]
    stderr: str


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """One rehearsal over a torture tree with --keep, shared by the tests of this module."""
    base = tmp_path_factory.mktemp("rehearsal")
    source = make_tree(base / "source")
    out, err = diskprep("rehearse", source, "--workdir", base / "work", "--keep", "--json")
    return Kept(source=source, root=base / "work", summary=json.loads(out), stderr=err)


def test_every_stage_is_walked_and_timed(kept: Kept) -> None:
    assert kept.summary["ok"] is True
    assert [stage["name"] for stage in kept.summary["stages"]] == STAGES
    assert all(stage["seconds"] >= 0 for stage in kept.summary["stages"])
    assert kept.summary["job"]["state"] == "Completed"


def test_the_data_needs_two_disks_at_least(kept: Kept) -> None:
    assert len(kept.summary["disks"]) >= 2
    for disk in kept.summary["disks"]:
        assert disk["bytes"] > 0
        assert Path(disk["image"]) == kept.root / "disks" / f"{disk['serial']}.img"
        assert Path(disk["image"]).is_file()


def test_the_summary_file_is_what_json_prints(kept: Kept) -> None:
    assert json.loads((kept.root / "summary.json").read_text()) == kept.summary


def test_all_that_other_tools_need_is_left(kept: Kept) -> None:
    for name in (
        "staging/seed.json",
        "staging/seal.json",
        "container",
        "vault/config",
        "passphrase",
        "certificate.json",
    ):
        assert (kept.root / name).exists(), name
    serials = sorted(disk["serial"] for disk in kept.summary["disks"])
    assert sorted(path.stem for path in (kept.root / "journals").glob("*.journal")) == serials
    assert sorted(path.stem for path in (kept.root / "staging/journals").glob("*.journal")) == serials
    restored = kept.root / "restored" / kept.source.relative_to("/")
    assert run("diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=socket", kept.source, restored) == ""


def test_three_recovery_points_came_back_as_they_were(kept: Kept) -> None:
    points = kept.summary["recovery_points"]
    assert [point["name"] for point in points] == ["first", "while the disks travelled", "after ingestion"]
    assert points[1]["added_bytes"] < points[0]["added_bytes"] / 2


def test_the_end_of_prepare_tells_the_three_things(kept: Kept) -> None:
    for words in ("disks prepared: REHEARSAL-01", "import job created: rehearsal", "ship to: "):
        assert words in kept.stderr


def test_the_five_inputs_are_in_the_seed(kept: Kept) -> None:
    seed = json.loads((kept.root / "staging/seed.json").read_text())
    for name in ("job_name", "storage_account", "container", "subscription_id", "sources"):
        assert seed[name]


def test_no_key_travels_and_nothing_but_data_packs_and_their_index_does(kept: Kept) -> None:
    imported = [p for p in (kept.root / "container").rglob("*") if p.is_file()]
    kinds = {p.relative_to(kept.root / "container").parts[0] for p in imported}
    assert kinds == {"data", "index", "waies"}
    shipped = {p.name for p in imported if len(p.name) == 64}
    trees = {p.name for p in (kept.root / "staging/repository/data").rglob("*") if p.is_file()} - shipped
    assert trees


def test_a_kept_rehearsal_removed_nothing_and_printed_its_plan(kept: Kept) -> None:
    assert (kept.root / "staging/repository/config").exists()
    assert "nothing was removed" in kept.stderr


def test_the_recovery_password_is_shown_by_disk_key_and_opens_the_disk(kept: Kept) -> None:
    disk = kept.summary["disks"][0]
    arguments = ("--staging", kept.root / "staging", "--passphrase-file", kept.root / "passphrase")
    password = diskprep("disk", "key", disk["serial"], *arguments)[0].strip()
    assert len(password.split("-")) == 8
    diskprep("disk", "verify", disk["image"], *arguments)
    partition = kept.root / "partition.img"
    run("dd", f"if={disk['image']}", f"of={partition}", "bs=1M", "skip=1", "status=none")
    run(need("cryptsetup"), "bitlkOpen", "--test-passphrase", partition, stdin=password)
    partition.unlink()


def test_the_recovery_password_is_nowhere_in_the_clear(kept: Kept) -> None:
    arguments = ("--staging", kept.root / "staging", "--passphrase-file", kept.root / "passphrase")
    passwords = [
        diskprep("disk", "key", disk["serial"], *arguments)[0].strip().encode() for disk in kept.summary["disks"]
    ]
    passphrase = (kept.root / "passphrase").read_bytes().strip()
    for path in [p for p in kept.root.rglob("*") if p.is_file() and p.name not in ("passphrase", "datacenter.sqlite")]:
        if path.suffix == ".img" or path.is_relative_to(kept.root / "restored") or "source-copy" in path.parts:
            continue
        data = path.read_bytes()
        for secret in (*passwords, passphrase):
            assert secret not in data, path
    for secret in (*passwords, passphrase):
        assert secret.decode() not in kept.stderr


def test_a_wrong_passphrase_shows_no_key(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("not the passphrase at all\n")
    serial = kept.summary["disks"][0]["serial"]
    diskprep(
        "disk", "key", serial, "--staging", kept.root / "staging", "--passphrase-file", tmp_path / "wrong", code=12
    )


def test_secrets_are_for_their_owner_alone(kept: Kept) -> None:
    for name in ("passphrase", "staging/seed.json"):
        assert stat.S_IMODE((kept.root / name).stat().st_mode) == 0o600
    for disk in kept.summary["disks"]:
        assert stat.S_IMODE(Path(disk["image"]).stat().st_mode) == 0o600


def test_a_changed_disk_is_found_by_verify(kept: Kept, tmp_path: Path) -> None:
    disk = kept.summary["disks"][-1]
    image = tmp_path / f"{disk['serial']}.img"
    run("cp", "--sparse=always", disk["image"], image)
    with image.open("r+b") as stream:  # one byte in the middle of every MiB behind the file system's own
        for offset in range(image.stat().st_size // 4, image.stat().st_size - (1 << 21), 1 << 20):
            stream.seek(offset)
            if (byte := stream.read(1)) != b"\0":
                stream.seek(offset)
                stream.write(bytes([byte[0] ^ 0xFF]))
    arguments = ("--staging", kept.root / "staging", "--passphrase-file", kept.root / "passphrase")
    assert "prepare this disk again" in diskprep("disk", "verify", image, *arguments, code=22)[1]


def test_journals_are_whole_and_end_sealed(kept: Kept) -> None:
    for path in (kept.root / "journals").glob("*.journal"):
        assert "whole" in diskprep("journal", "verify", path)[0]
        assert "sealed" in diskprep("journal", "dump", path)[0].splitlines()[-1]


def test_status_tells_disks_job_and_the_next_command(kept: Kept) -> None:
    document = diskprep_json("status", kept.root / "staging")
    assert {disk["serial"] for disk in document["disks"]} == {disk["serial"] for disk in kept.summary["disks"]}
    assert document["job"] == "rehearsal"
    assert document["next"].startswith("diskprep ")


def test_without_keep_nothing_but_the_summary_is_left_and_the_source_is_untouched(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    before = run("find", source, "-printf", "%p %m %s %T@ %C@ %i\\n")
    work = tmp_path / "work"
    out, _err = diskprep("rehearse", source, "--workdir", work, "--disks", "3", "--disk-size", "128M")
    assert "3 disks travelled" in out
    assert sorted(p.name for p in work.iterdir() if not p.name.startswith(".")) == ["summary.json"]
    assert run("find", source, "-printf", "%p %m %s %T@ %C@ %i\\n") == before


def test_a_rehearsal_follows_an_earlier_one_in_the_same_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "only").write_bytes(os.urandom(300_000))
    for _ in range(2):
        assert diskprep_json("rehearse", source, "--workdir", tmp_path / "work", "--keep")["ok"] is True


def test_a_folder_that_holds_other_things_is_not_touched(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    work = tmp_path / "work"
    work.mkdir()
    (work / "precious").write_text("mine")
    assert "nothing was removed" in diskprep("rehearse", source, "--workdir", work, code=2)[1]
    assert [p.name for p in work.iterdir()] == ["precious"]
    diskprep("rehearse", source, "--workdir", source / "inside", code=2)
    assert not (source / "inside").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("/no/such/folder",), 10),
        (("/etc/hostname",), 2),
        (("--disks", "11"), 2),
        (("--disk-size", "huge"), 2),
        (("--no-such-option",), 2),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_done(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    source = () if arguments[0].startswith("/") else (tmp_path,)
    error = diskprep("rehearse", *source, *arguments, "--workdir", tmp_path / "w", code=code)[1]
    assert error.startswith("diskprep: ")
    assert "Traceback" not in error
    assert not (tmp_path / "w").exists()


def test_disks_that_are_too_small_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        (source / f"{number}").write_bytes(os.urandom(15 << 20))
    error = diskprep("rehearse", source, "--workdir", tmp_path / "w", "--disks", "1", "--disk-size", "96M", code=24)[1]
    assert "GB of the seed" in error


def test_a_source_without_data_has_nothing_to_ship(tmp_path: Path) -> None:
    (tmp_path / "source/empty").mkdir(parents=True)
    assert "nothing to ship" in diskprep("rehearse", tmp_path / "source", "--workdir", tmp_path / "w", code=2)[1]


def test_the_same_journey_against_a_real_blob_server(tmp_path: Path, azurite: Any) -> None:
    source = make_tree(tmp_path / "source", megabytes=3)
    told: list[events.Event] = []
    options = journey.Options(source=source, workdir=tmp_path / "work", keep=True)
    summary = journey.rehearse(options, told.append, account=azurite.account)
    assert summary.ok
    names = {item.name for item in azurite.account.container(journey.VAULT).list()}
    assert "config" in names
    assert len(summary.recovery_points) == 3


@pytest.mark.root
def test_image_files_need_no_root(tmp_path: Path) -> None:
    """In a user namespace, as a plain user: no capability is left, and only what belongs to that user can be opened."""
    source = make_tree(tmp_path / "source", megabytes=1)
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [*plain_user(), sys.executable, "-m", "diskprep", "rehearse", source, "--workdir", tmp_path / "work", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["ok"] is True
    assert "no rights" in done.stderr  # that file could not be read; it is told, and the rest is complete
