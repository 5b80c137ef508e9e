"""Signals, closed streams and readers that go away: told as documented, and never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import diskprep, make_tree

DISKPREP = (sys.executable, "-m", "diskprep")


def start(source: Path, work: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DISKPREP, "rehearse", source, "--workdir", work, *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait_s", [0.2, 1.5, 3.0])
def test_an_interrupt_at_any_moment_ends_with_its_code_and_what_to_do(
    tmp_path: Path, number: signal.Signals, wait_s: float
) -> None:
    running = start(make_tree(tmp_path / "source", megabytes=2), tmp_path / "work")
    time.sleep(wait_s)
    running.send_signal(number)
    _out, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    assert "ctypes" not in err
    if running.returncode == -number:  # before the program could listen
        assert wait_s < 1
        return
    assert running.returncode == 130, err
    assert "give the same command again" in err


def test_an_interrupted_rehearsal_can_be_given_again(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    running = start(source, tmp_path / "work", "--keep")
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    diskprep("rehearse", source, "--workdir", tmp_path / "work", "--quiet")


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    running = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *DISKPREP, "rehearse", source, "--workdir", tmp_path / "w", "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    time.sleep(2)
    running.send_signal(signal.SIGHUP)
    _out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err


def test_sigusr1_asks_for_a_line_and_never_ends_the_program(tmp_path: Path) -> None:
    running = start(make_tree(tmp_path / "source", megabytes=2), tmp_path / "work")
    time.sleep(0.5)
    for _ in range(20):
        if running.poll() is None:
            running.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
    _out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "REHEARSAL" in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -n 0"])
def test_a_stream_that_is_closed_or_full_is_no_crash(tmp_path: Path, closed: str) -> None:
    command = f'"$@" {closed}; echo "exit $?" >{tmp_path}/code'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", "bash", *DISKPREP, "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "code").read_text().strip() in ("exit 0", "exit 5", "exit 141")


def test_closed_streams_are_not_given_to_files(tmp_path: Path) -> None:
    """A journal or disk on descriptor 1 would receive whatever a library prints there."""
    code = (
        "import os, sys; import diskprep.cli as c; c._open_standard_streams(); "
        "os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'%d' % os.open(os.devnull, os.O_RDONLY))"
    )
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, tmp_path / "f"], check=True, timeout=60
    )
    assert int((tmp_path / "f").read_text()) > 2


def test_help_version_and_nothing_at_all() -> None:
    assert diskprep("--version")[0].startswith("diskprep ")
    assert "rehearse" in diskprep("--help")[0]
    assert "rehearse" in diskprep(code=2)[0]
    assert "prepare" in diskprep("disk", code=2)[0]
    assert "No such command" in diskprep("nonsense", code=2)[1]


def test_the_time_zone_and_the_locale_change_nothing(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    done = subprocess.run(
        [*DISKPREP, "rehearse", source, "--workdir", tmp_path / "work", "-q"],
        env={**os.environ, "TZ": "Asia/Kathmandu", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
