"""No child process ever sees a secret: neither as an argument nor in its environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support import diskprep, make_tree, need, run


def test_no_secret_is_in_the_arguments_or_the_environment_of_any_process(tmp_path: Path) -> None:
    source, work, trace = make_tree(tmp_path / "source", megabytes=1), tmp_path / "work", tmp_path / "trace"
    watch = (need("strace"), "-f", "-v", "-s", "65536", "-e", "trace=execve", "-o", trace)
    run(*watch, sys.executable, "-m", "diskprep", "rehearse", source, "--workdir", work, "--keep", "--quiet")
    told = trace.read_text(errors="replace")
    assert told.count("mkntfs") >= 2
    keys = ("--staging", work / "staging", "--passphrase-file", work / "passphrase")
    disks = json.loads((work / "summary.json").read_text())["disks"]
    passwords = [diskprep("disk", "key", disk["serial"], *keys)[0].strip() for disk in disks]
    for secret in [(work / "passphrase").read_text().strip(), *passwords]:
        assert secret not in told
