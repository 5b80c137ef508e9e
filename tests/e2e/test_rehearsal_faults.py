"""The journey with each fault that may befall a disk: what is told, what is sent again, and that all is restored."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import diskprep, make_tree

from diskprep.datacenter.faults import DriveFault

#: What the operator reads of the disk that was struck.
_TOLD = {
    DriveFault.LOST: "drive REHEARSAL-02 never arrived in the datacenter",
    DriveFault.UNREADABLE: "drive REHEARSAL-02 failed while it was read",
    DriveFault.WRONG_SERIAL: "drive REHEARSAL-02 has another serial number than its manifest says",
    DriveFault.WRONG_KEY: "drive REHEARSAL-02 does not open with the job's recovery password",
    DriveFault.MANIFEST_EDITED: "drive REHEARSAL-02 has another manifest than the job was created with",
    DriveFault.BLOCKS_DAMAGED: "not what the manifest says",
    DriveFault.FILE_MISSING: "is not on the disk though its manifest names it",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("source") / "tree", megabytes=2)


#: Those that `make test` walks; the stand-in's own tests have each of the others, too.
_ALWAYS = (DriveFault.LOST, DriveFault.BLOCKS_DAMAGED)


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=() if f in _ALWAYS else pytest.mark.slow) for f in sorted(_TOLD)]
)
def test_what_did_not_arrive_is_told_in_words_and_sent_again_and_all_is_restored(
    source: Path, tmp_path: Path, fault: DriveFault
) -> None:
    out, err = diskprep("rehearse", source, "--workdir", tmp_path / "work", "--fault", str(fault))
    assert "drive REHEARSAL-01 was copied whole" in err
    assert _TOLD[fault] in err
    assert "are sent again, as import job rehearsal-r1" in err
    assert "import job rehearsal-r1: Completed" in err
    assert "every pack verified in the vault" in err
    assert out.count("as they were") == 3


def test_a_drive_that_is_late_is_waited_for(source: Path, tmp_path: Path) -> None:
    out, err = diskprep("rehearse", source, "--workdir", tmp_path / "work", "--fault", "late")
    assert "drive REHEARSAL-02 of job rehearsal is late: the job waits" in err
    assert "sent again" not in err
    assert out.count("as they were") == 3
