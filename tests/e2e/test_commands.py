"""The same journey stage by stage, as an operator types it, with the stand-in of the service in another process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import CONTAINER, PASSPHRASE, RETURN, Desk, serving
from support import diskprep, diskprep_json, need, run


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def service(desk: Desk) -> Iterator[tuple[str, ...]]:
    with serving(desk.practice) as reached:
        yield reached


def test_01_a_short_passphrase_is_refused_and_nothing_is_written(desk: Desk) -> None:
    desk.passphrase_file.write_text("short\n")
    assert "16 characters" in desk.stage(code=2)[1]
    assert not desk.staging.exists()
    desk.passphrase_file.write_text(PASSPHRASE + "\n")


def test_02_staging_tells_what_it_holds_and_what_comes_next(desk: Desk) -> None:
    out, err = desk.stage()
    assert "snapshot " in out
    assert "next: diskprep plan" in err


def test_03_staging_again_changes_nothing(desk: Desk) -> None:
    before = run("find", desk.staging, "-type", "f", "-newermt", "now")
    seal = (desk.staging / "seal.json").read_bytes()
    desk.stage()
    assert (desk.staging / "seal.json").read_bytes() == seal
    assert before == ""


def test_04_the_plan_writes_nothing(desk: Desk) -> None:
    document = diskprep_json("plan", desk.staging, "--disk-size", "128M")
    assert len(document["disks"]) == 1
    assert not (desk.staging / "plan.json").exists()
    assert "GB of the seed" in diskprep("plan", desk.staging, "--disk-size", "96M", "--disks", "0", code=24)[1]


def test_05_a_dry_run_of_prepare_prints_the_steps_and_writes_nothing(desk: Desk) -> None:
    diskprep("datacenter", "sas", desk.practice, CONTAINER)
    run("truncate", "-s", "128M", *desk.disks)
    out, _err = desk.prepare("--dry-run")
    assert out.splitlines()[-1].startswith("sealed:")
    assert run("stat", "-c", "%b", desk.disks[0]).strip() == "0"


def test_06_an_image_that_holds_something_is_not_erased_unasked(desk: Desk) -> None:
    desk.disks[0].write_bytes(b"precious" + bytes((128 << 20) - 8))
    assert "--confirm-serial WD-A1" in desk.prepare(code=20)[1]
    assert "--confirm-serial WD-A1" in desk.prepare("--confirm-serial", "WD-B2", code=20)[1]
    assert desk.disks[0].read_bytes()[:8] == b"precious"


def test_07_disks_are_prepared_after_the_serial_was_given(desk: Desk) -> None:
    out, err = desk.prepare("--confirm-serial", "WD-A1")
    assert out.strip() == "disks prepared: WD-A1"
    assert "next: diskprep job create" in err
    assert diskprep_json("status", desk.staging)["disks"][0]["serial"] == "WD-A1"


def test_08_a_sealed_disk_is_left_alone_and_verifies(desk: Desk) -> None:
    before = run("sha256sum", desk.disks[0])
    desk.prepare("--confirm-serial", "WD-A1")
    assert run("sha256sum", desk.disks[0]) == before
    assert "all as written" in diskprep("disk", "verify", desk.disks[0], "--staging", desk.staging, *desk.secret)[0]


def test_09_the_small_part_goes_online_and_the_vault_takes_incrementals_at_once(desk: Desk) -> None:
    diskprep("vault", "publish", desk.staging, "--vault", desk.vault, *desk.secret)
    (desk.source / "new since").write_text("written while the disks travel")
    out, _err = diskprep("vault", "backup", desk.source, "--vault", desk.vault, *desk.secret)
    assert " unchanged, " in out
    assert len(diskprep_json("vault", "list", "--vault", desk.vault, *desk.secret)["recovery_points"]) == 2
    told = diskprep("status", desk.staging, "--vault", desk.vault, *desk.secret)[0]
    assert len(re.findall(r"recovery point [0-9a-f]{8} of .*: waits for \d+ packs?, ", told)) == 2


def test_10_a_passphrase_that_leaked_is_changed_while_the_disks_travel_and_stays_changed(desk: Desk) -> None:
    desk.new_passphrase_file.write_text("canary passphrase after a change\n")
    changed = ("--vault", desk.vault, *desk.secret, "--new-passphrase-file", desk.new_passphrase_file)
    assert "which was removed" in diskprep("vault", "passphrase", "change", *changed)[0]
    assert "no key" in diskprep("vault", "publish", desk.staging, "--vault", desk.vault, *desk.secret, code=12)[1]
    diskprep("vault", "publish", desk.staging, *desk.opening)
    diskprep("vault", "list", "--vault", desk.vault, *desk.secret, code=12)
    assert len(diskprep_json("vault", "passphrase", "list", *desk.opening)["slots"]) == 1


def test_11_the_job_is_created_once(desk: Desk, service: tuple[str, ...]) -> None:
    for said in ("created", "is there already"):
        out, _err = diskprep("job", "create", desk.staging, *service, *desk.secret)
        assert "disks prepared: WD-A1" in out
        assert f"import job {said}: my-first-job" in out
        assert "ship to: " in out
    assert "my-first-job" in diskprep("job", "list", desk.staging, *service)[0]


def test_12_whoever_is_not_signed_in_is_told_how(desk: Desk) -> None:
    assert "az login" in diskprep("job", "show", desk.staging, "--auth", "cli", code=40)[1]


def test_13_the_package_is_entered_and_arrives(desk: Desk, service: tuple[str, ...]) -> None:
    shipped = ("--carrier", "DHL", "--tracking-number", "JD014600001")
    assert "Shipping" in diskprep("job", "ship", desk.staging, *shipped, *RETURN, *service)[0]
    out, _err = diskprep("datacenter", "receive", desk.practice, "my-first-job", f"WD-A1={desk.disks[0]}")
    assert "my-first-job: Completed" in out
    assert diskprep_json("job", "show", desk.staging, *service)["state"] == "Completed"


def test_14_nothing_is_removed_before_there_is_a_certificate(desk: Desk) -> None:
    arguments = (desk.staging, *desk.stores, "--certificate", desk.certificate)
    assert "nothing was removed" in diskprep("cleanup", "run", *arguments, code=51)[1]


def test_15_ingestion_names_the_disk_of_a_pack_that_is_missing(desk: Desk) -> None:
    pack = max((desk.container / "data").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    aside = desk.base / "aside"
    pack.rename(aside)
    arguments = (desk.staging, "--container", desk.container, "--certificate", desk.certificate, *desk.opening)
    assert "WD-A1" in diskprep("vault", "ingest", *arguments, code=50)[1]
    assert not desk.certificate.exists()
    aside.rename(pack)


def test_16_ingestion_verifies_everything_and_certifies_it(desk: Desk) -> None:
    arguments = (desk.staging, "--container", desk.container, "--certificate", desk.certificate, *desk.opening)
    assert "all read back" in diskprep("vault", "ingest", *arguments)[0]
    assert json.loads(desk.certificate.read_text())["job_name"] == "my-first-job"
    points = diskprep_json("status", desk.staging, *desk.opening)["recovery_points"]
    assert [point["restorable"] for point in points] == [True] * 3
    diskprep("vault", "check", "--read-data", *desk.opening)
    environment = {"RESTIC_PASSWORD_FILE": str(desk.new_passphrase_file)}
    said = run(need("restic"), "--no-cache", "-r", desk.vault, "check", "--read-data", env=environment)
    assert "no errors were found" in said


def test_17_every_recovery_point_is_restored(desk: Desk) -> None:
    for number, point in enumerate(diskprep_json("vault", "list", *desk.opening)["recovery_points"]):
        target = desk.base / f"restored-{number}"
        diskprep("vault", "restore", target, "--snapshot", point["id"][:8], *desk.opening)
        told = run(
            "diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=socket",
            desk.source, target / desk.source.relative_to("/"), ok=False,
        )  # fmt: skip
        assert (told == "") == (number >= 1), told
    assert number == 2, "ingestion takes the first incremental at once, where the source is"


def test_18_cleanup_removes_what_the_certificate_covers_and_keeps_the_keys(desk: Desk) -> None:
    arguments = (desk.staging, *desk.stores, "--certificate", desk.certificate)
    assert "may go" in diskprep("cleanup", "plan", *arguments)[0]
    assert (desk.staging / "repository/config").exists()
    assert "removed: " in diskprep("cleanup", "run", *arguments)[0]
    assert not [p for p in (desk.staging / "repository/data").rglob("*") if p.is_file()]
    assert not [p for p in (desk.container / "data").rglob("*") if p.is_file()]
    assert len(diskprep("disk", "key", "WD-A1", "--staging", desk.staging, *desk.secret)[0].split("-")) == 8
    assert "all as written" in diskprep("disk", "verify", desk.disks[0], "--staging", desk.staging, *desk.secret)[0]
    diskprep("vault", "check", "--read-data", *desk.opening)


def test_19_a_repository_path_or_a_vault_that_is_none_is_told(desk: Desk, tmp_path: Path) -> None:
    diskprep("vault", "list", "--vault", tmp_path / "none", *desk.secret, code=10)
    told = diskprep("vault", "passphrase", "list", "--vault", desk.staging, *desk.secret, code=10)[1]
    assert f"--vault {desk.staging}/repository" in told
    diskprep("vault", "passphrase", "list", "--vault", desk.staging / "repository", *desk.secret)
    diskprep("status", tmp_path, code=10)
    diskprep("disk", "key", "NONE-1", "--staging", desk.staging, *desk.secret, code=10)


def test_20_nobody_asks_for_a_passphrase_where_nobody_can_answer(desk: Desk) -> None:
    assert "--passphrase-file" in diskprep("vault", "list", "--vault", desk.vault, code=2)[1]


def test_21_a_reader_that_goes_away_is_no_crash(desk: Desk) -> None:
    command = f"{sys.executable} -m diskprep journal dump {desk.base}/journals/WD-A1.journal | head -n 0"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert "Traceback" not in done.stderr
