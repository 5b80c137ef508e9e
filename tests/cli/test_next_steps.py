"""What is told to be typed next can be typed: paths with blanks are one word, and no option is left out."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from seeds import SEED
from support import diskprep, diskprep_json

from diskprep.cli import output, places, status
from diskprep.disk import plan as plans
from diskprep.errors import NotFound, StorageUnavailable
from diskprep.importjob.model import DriveStatus, Job, JobState
from diskprep.importjob.saved import save_job
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal
from diskprep.seed import Staging, save_seed
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate

MIB = 1 << 20
SAS = "container?sv=2022-11-02&se=2999-01-01T00:00:00Z&sp=rw&sig=signature"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """A sealed staging, in a folder with a blank in its name, that nothing was done with yet."""
    staging = Staging(tmp_path / "my staging")
    staging.root.mkdir()
    file = SealedFile(name=f"data/00/{'0' * 64}", kind=FileKind.DATA, size_bytes=16 * MIB, sha256="0" * 64)
    save_seal(
        staging.seal_file,
        Seal(job_name="job-1", repository_id="0" * 64, snapshot="1" * 64, created="now", files=(file,)),
    )
    save_seed(staging, replace(SEED, job_name="job-1", sources=("/my source",), repository_id="0" * 64))
    return staging


def test_a_path_is_one_word_and_nothing_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("/a b/\x1b[31m")
    output.next_step(f"diskprep status {output.word(path)}")
    assert capsys.readouterr().err == "next: diskprep status '/a b/\\x1b[31m'\n"


def test_status_tells_the_whole_command(staging: Staging) -> None:
    next_step = diskprep("status", staging.root)[1]
    assert next_step == f"next: diskprep disk prepare '{staging.root}' DISK... --container-sas-file FILE\n"
    staging.seal_file.unlink()
    words = shlex.split(diskprep_json("status", staging.root)["next"])
    assert words[:5] == ["diskprep", "stage", "/my source", "--staging", str(staging.root)]


def test_a_job_before_its_disks_is_sent_to_prepare_them(staging: Staging) -> None:
    with pytest.raises(NotFound, match="no disks are planned yet") as missing:
        plans.load_plan(staging.plan_file, load_seal(staging.seal_file))
    assert f"diskprep disk prepare '{staging.root}' DISK..." in missing.value.hint
    assert "--container-sas-file" in missing.value.hint


def test_a_dry_run_plans_with_images_that_are_not_there_yet(staging: Staging, tmp_path: Path) -> None:
    (tmp_path / "sas").write_text(SAS)
    (tmp_path / "sas").chmod(0o600)
    images = [tmp_path / "WD-A.img", tmp_path / "WD-B.img"]
    options = ("--container-sas-file", tmp_path / "sas", "--image-size", "96M", "--dry-run")
    out, err = diskprep("disk", "prepare", staging.root, *images, *options)
    assert f"disk WD-A ({images[0]}): 1 packs" in err
    assert f"disk WD-B ({images[1]}): not needed" in err
    assert out.startswith("claimed: ")
    assert not any(image.exists() for image in images)
    assert "two of the disks" in diskprep("disk", "prepare", staging.root, images[0], images[0], *options, code=2)[1]
    twice = (f"{images[0]},serial=S1", f"{images[0]},serial=S2")
    assert "are one disk" in diskprep("disk", "prepare", staging.root, *twice, *options, code=2)[1]
    inside = staging.root / "WD-C.img"
    assert "is to be kept" in diskprep("disk", "prepare", staging.root, inside, *options, code=20)[1]


def completed() -> Job:
    return Job(
        name="job-1",
        location="westeurope",
        storage_account_id="x",
        state=JobState.COMPLETED,
        drives=(DriveStatus(drive_id="WD-1", copy_status="Completed"),),
    )


def certified(staging: Staging, tmp_path: Path) -> Certificate:
    return Certificate(
        job_name="job-1",
        repository_id="0" * 64,
        seal_digest=load_seal(staging.seal_file).digest,
        snapshots=("1" * 64,),
        vault=str(tmp_path / "my vault"),
        created="2026-02-01T00:00:00Z",
        method="all",
        files=1,
        files_bytes=1,
        files_digest="0" * 64,
        data_packs=1,
        data_bytes=1,
        began="2026-02-01T00:00:00Z",
        container=str(tmp_path / "container"),
        packs_read=1,
        packs_trusted=0,
    )


def test_after_ingestion_the_cleanup_comes_next(staging: Staging, tmp_path: Path) -> None:
    save_job(staging, completed())
    assert diskprep_json("status", staging.root)["next"].startswith("diskprep vault ingest ")
    vault = DirectoryStore(tmp_path / "my vault")
    proven = certified(staging, tmp_path)
    certificates.save(replace(proven, seal_digest="0" * 64), vault, places.ingested_file(staging))
    assert diskprep_json("status", staging.root)["ingested"] == "", "a certificate of another seal"
    certificates.save(proven, vault, places.ingested_file(staging))
    out, err = diskprep("status", staging.root)
    assert "in the vault, all of it: 2026-02-01T00:00:00Z" in out
    assert err == (
        f"next: diskprep cleanup plan '{staging.root}' --container {tmp_path}/container --vault '{tmp_path}/my vault' "
        f"--certificate '{staging.root}/certificate.json'\n"
    )
    assert status._certificate(Staging(staging.root / "repairs/job-1-r1", staging.root)) == proven


@pytest.mark.parametrize("how", ["withdrawn", "another one", "the vault is not there"])
def test_a_vault_that_can_be_reached_is_believed_and_not_the_copy_of_its_certificate(
    staging: Staging, tmp_path: Path, how: str
) -> None:
    save_job(staging, completed())
    vault = DirectoryStore(tmp_path / "my vault")
    vault.write("config", [b"sealed"])
    proven = certified(staging, tmp_path)
    certificates.save(proven, vault, places.ingested_file(staging))
    assert diskprep_json("status", staging.root)["withdrawn"] is False
    if how == "withdrawn":
        vault.delete(certificates.object_name("job-1"))
    elif how == "another one":
        certificates.save(replace(proven, created="2026-03-01T00:00:00Z"), vault, None)
    else:
        shutil.rmtree(vault.root)
        vault.root.mkdir()  # where it is mounted at other times
    document = diskprep_json("status", staging.root)
    out, err = diskprep("status", staging.root)
    if how == "the vault is not there":
        assert (document["withdrawn"], document["ingested"]) == (False, proven.created)
        assert "cleanup plan" in err
    else:
        assert (document["withdrawn"], document["ingested"]) == (True, "")
        assert "the vault has it no longer" in out
        assert document["next"].startswith("diskprep vault ingest ")
        assert "vault ingest" in err
        assert "cleanup" not in out + err


def test_a_state_folder_that_can_never_be_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300)):
        for use in (places.ledger, places.journal_folder):
            with pytest.raises(StorageUnavailable) as refused:
                use(folder)
            assert "--state DIR" in refused.value.hint
    assert places.ledger(tmp_path / "new").jobs() == {}
