"""The crew: forked children that answer, fail, are killed or orphaned, and never keep anybody waiting."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import open_descriptors

from diskprep import errors
from diskprep.errors import DiskprepError, StorageFull, StorageUnavailable
from diskprep.staging.crew import MESSAGE_BYTES, Crew, Worker

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DiskprepError)]


class Clerk:
    """A worker that answers with what `answer` makes of a message, and writes down how it ended."""

    def __init__(self, answer: Callable[[int, bytes], bytes] | None = None, book: Path | None = None) -> None:
        self._answer, self._book, self.done = answer, book, 0

    def work(self, directory: int, message: bytes) -> bytes:
        try:
            self.done += 1
            return message if self._answer is None else self._answer(directory, message)
        finally:
            os.close(directory)

    def finish(self) -> bytes:
        return b"%d" % self.done

    def abandon(self, *, flush: bool) -> bytes:
        if self._book is not None:
            (self._book / str(os.getpid())).write_text(f"{flush} {self.done}")
        return b""


class Answers(list[bytes]):
    """What came back, and the wait for it."""

    def wait(self, crew: Crew, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while crew.outstanding:
            ready, _, _ = select.select(crew.sockets(), [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "no answer came"
            crew.collect(ready[0])


def pids(crew: Crew) -> list[int]:
    return [member.pid for member in crew._members]


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@contextmanager
def crew_of(count: int, make: Callable[[], Worker]) -> Iterator[Crew]:
    """A crew that leaves neither a child nor a descriptor behind, however it ends."""
    before = open_descriptors()
    crew = Crew(count, make)
    children = pids(crew)
    try:
        yield crew
    finally:
        crew.close()
    assert not open_descriptors() - before
    for pid in children:
        with pytest.raises(ChildProcessError):  # waited for: no zombie
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_every_message_is_answered_and_the_last_answers_are_of_all(directory: int) -> None:
    with crew_of(3, lambda: Clerk(lambda _, message: b"%d " % os.getpid() + message)) as crew:
        answers, children = Answers(), set(pids(crew))
        for number in range(40):
            while not crew.has_room:
                crew.collect(select.select(crew.sockets(), [], [], 20)[0][0])
            crew.submit(directory, b"%d" % number, answers.append)
        answers.wait(crew)
        assert sorted(int(answer.split()[1]) for answer in answers) == list(range(40))
        assert {int(answer.split()[0]) for answer in answers} == children
        assert os.getpid() not in children
        assert sum(map(int, crew.finish())) == 40


def test_the_directory_that_goes_with_a_message_is_open_in_the_child(directory: int, tmp_path: Path) -> None:
    def look(descriptor: int, _: bytes) -> bytes:
        return os.fsencode(Path(f"/proc/self/fd/{descriptor}").readlink()) + b" %d" % len(descriptors())

    with crew_of(1, lambda: Clerk(look)) as crew:
        answers = Answers()
        for _ in range(5):
            crew.submit(directory, b"", answers.append)
            answers.wait(crew)
        assert [answer.split()[0] for answer in answers] == [os.fsencode(tmp_path)] * 5
        assert len({answer.split()[1] for answer in answers}) == 1  # none is left open


def test_two_messages_are_under_way_to_a_child_and_no_more(directory: int) -> None:
    gate, opener = os.pipe()
    with crew_of(2, lambda: Clerk(lambda _, message: os.read(gate, 1) + message)) as crew:
        answers, room = Answers(), list[bool]()
        for number in range(4):
            room.append(crew.has_room)
            crew.submit(directory, b"%d" % number, answers.append)
        room.append(crew.has_room)
        assert crew.outstanding == 4
        assert {len(member.under_way) for member in crew._members} == {2}
        os.write(opener, b"....")
        answers.wait(crew)
        assert sorted(answers) == [b".0", b".1", b".2", b".3"]
        assert [*room, crew.has_room] == [True] * 4 + [False, True]
    os.close(gate)
    os.close(opener)


def test_long_answers_and_the_longest_messages_do_not_wait_for_each_other(directory: int) -> None:
    with crew_of(2, lambda: Clerk(lambda _, message: message[:1] * (5 << 20))) as crew:
        answers = Answers()
        for _ in range(3):
            for number in range(4):  # all before the first answer is read
                crew.submit(directory, b"%d" % number * (MESSAGE_BYTES - 1), answers.append)
            answers.wait(crew)
        assert sorted(answer[:1] for answer in answers) == sorted([b"0", b"1", b"2", b"3"] * 3)
        assert all(answer == answer[:1] * (5 << 20) for answer in answers)
        assert crew.finish() == [b"6", b"6"]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_of_a_child_is_raised_again_as_what_it_was(directory: int, kind: type[DiskprepError]) -> None:
    def fail(_: int, message: bytes) -> bytes:
        raise kind("what happened: \u00fc \udcff", hint="what to do")

    with crew_of(1, lambda: Clerk(fail)) as crew:
        answers = Answers()
        crew.submit(directory, b"", answers.append)
        with pytest.raises(DiskprepError) as caught:
            answers.wait(crew)
        assert type(caught.value) is kind
        assert caught.value.message.startswith("what happened: \u00fc ")
        assert caught.value.hint == "what to do"
        assert answers == []


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_error_that_is_none_of_ours_keeps_its_trace_but_no_values(directory: int, error: BaseException) -> None:
    def fail(_: int, message: bytes) -> bytes:
        raise error

    with crew_of(1, lambda: Clerk(fail)) as crew:
        crew.submit(directory, b"a secret value", lambda _: None)
        with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
            Answers().wait(crew)
        assert "in fail" in str(caught.value)
        assert "a secret value" not in str(caught.value)


@pytest.mark.parametrize("flush", [True, False])
def test_after_an_error_all_others_still_make_durable_what_they_have(
    directory: int, tmp_path: Path, flush: bool
) -> None:
    """Also the child that failed, and also when more than one answer is an error."""

    def fail(_: int, message: bytes) -> bytes:
        if message == b"bad":
            raise StorageFull("full")
        return message

    with crew_of(3, lambda: Clerk(fail, tmp_path)) as crew:
        children = pids(crew)
        for message in (b"bad", b"bad", b"good", b"bad", b"good", b"good"):
            crew.submit(directory, message, lambda _: None)
        with pytest.raises(StorageFull):
            Answers().wait(crew)
        crew.abandon(flush=flush)
        ends = {int(path.name): path.read_text() for path in tmp_path.iterdir()}
        assert ends == dict.fromkeys(children, f"{flush} 2")


def test_what_fails_at_the_end_is_raised_when_all_have_ended(tmp_path: Path) -> None:
    class Late(Clerk):
        def finish(self) -> bytes:
            (tmp_path / str(os.getpid())).touch()
            first = os.open(tmp_path / "the first", os.O_CREAT | os.O_EXCL)  # the others cannot
            os.close(first)
            raise StorageFull("full at the end")

    with crew_of(3, Late) as crew:
        children = pids(crew)
        with pytest.raises((StorageFull, RuntimeError), match=r"at the end|FileExistsError"):
            crew.finish()
        assert {path.name for path in tmp_path.iterdir()} == {"the first", *map(str, children)}


@pytest.mark.parametrize("moment", ["idle", "at work", "between header and message"])
def test_a_killed_child_is_told_soon_and_the_others_end_well(directory: int, tmp_path: Path, moment: str) -> None:
    gate, opener = os.pipe()
    with crew_of(2, lambda: Clerk(lambda _, message: os.read(gate, 1), tmp_path)) as crew:
        victim, other = pids(crew)
        if moment == "at work":
            crew.submit(directory, b"x", lambda _: None)
            crew.submit(directory, b"x", lambda _: None)
            os.kill(victim, signal.SIGKILL)
            os.write(opener, b".")
        elif moment == "idle":
            os.kill(victim, signal.SIGKILL)
            os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        else:
            os.kill(victim, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(StorageUnavailable, match=f"process {victim} has ended") as caught:  # noqa: PT012
            if moment == "idle":
                crew.submit(directory, b"x", lambda _: None)
            if moment.startswith("between"):
                crew.submit(directory, b"x", lambda _: None)
                os.kill(victim, signal.SIGKILL)
            Answers().wait(crew)
        assert "dmesg" in caught.value.hint
        with pytest.raises(StorageUnavailable):
            crew.abandon(flush=True)
        assert time.monotonic() - begun < 5
        assert [path.name for path in tmp_path.iterdir()] == [str(other)]
    os.close(gate)
    os.close(opener)


def test_a_child_ignores_what_the_terminal_sends_to_all(directory: int) -> None:
    """From its first moment on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 5:
        with crew_of(1, Clerk) as crew:
            os.kill(pids(crew)[0], number)
            answers = Answers()
            crew.submit(directory, b"still there", answers.append)
            answers.wait(crew)
            assert answers == [b"still there"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_children_whose_parent_is_killed_end_by_themselves(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_staging_crew import Clerk, Crew, pids\n"
        "crew = Crew(3, lambda: Clerk(lambda _, message: time.sleep(0.3) or message))\n"
        "here = os.open('/', os.O_RDONLY)\n"
        "for _ in range(2): crew.submit(here, b'x', print)\n"
        "print(*pids(crew), flush=True)\n"
        "time.sleep(60)\n"
    )
    here = Path(__file__).parent
    parent = subprocess.Popen(
        [sys.executable, "-c", code, here],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parents[1]}"},
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 3
    assert all(map(is_running, children))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, children))


def is_running(pid: int) -> bool:
    """Whether a process is there; one that nobody has waited for yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_crew_that_cannot_be_forked_whole_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before, really, children = open_descriptors(), os.fork, list[int]()

    def fork() -> int:
        if children:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        children.append(really())
        return children[0]

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(StorageUnavailable, match="Resource temporarily unavailable"):
        Crew(3, Clerk)
    assert not open_descriptors() - before
    assert len(children) == 1
    assert not is_running(children[0])


def test_a_worker_that_cannot_be_made_is_told() -> None:
    def make() -> Worker:
        raise ValueError("no worker")

    with crew_of(1, make) as crew, pytest.raises(StorageUnavailable, match="has ended"):
        crew.finish()
