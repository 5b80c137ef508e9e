"""Programs around the snapshot: when they run, and that nothing is left in backup mode."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from diskprep.cli import viewing
from diskprep.errors import DiskprepError, NotFound, UsageError
from diskprep.events import Event, Note
from diskprep.source import Source
from diskprep.view.model import Hooks, ViewKind
from diskprep.view.view import consistent_view

MakeVolume = Callable[..., Path]


class Calls:
    """Hooks that write down that they ran, and what there was in the source then."""

    def __init__(self, tmp_path: Path) -> None:
        self.source = tmp_path / "source"
        self.source.mkdir()
        self._log = tmp_path / "log"
        for name, code in (("pre", 0), ("post", 0), ("fails", 3)):
            program = tmp_path / f"{name} hook"
            program.write_text(f'#!/bin/sh\necho {name} "$@" >> "{self._log}"\necho "said {name}"\nexit {code}\n')
            program.chmod(0o755)
        self.pre, self.post, self.fails = (
            f"'{tmp_path}/{name} hook' 'an argument'" for name in ("pre", "post", "fails")
        )

    @property
    def sources(self) -> list[Source]:
        return [Source(os.fsencode(self.source))]

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def test_pre_runs_before_and_post_after_the_reading(calls: Calls) -> None:
    hooks = Hooks(pre=calls.pre, post=calls.post)
    with consistent_view(calls.sources, kind=ViewKind.NONE, hooks=hooks) as view:
        assert calls.log == ["pre an argument"]
        assert view.consistency.endswith("application-consistent as far as the pre-hook provides for it")
    assert calls.log == ["pre an argument", "post an argument"]


@pytest.mark.root
def test_with_a_snapshot_post_runs_before_the_reading(calls: Calls, make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    hooks = Hooks(pre=f"touch {point}/pre", post=calls.post)
    with consistent_view([Source(os.fsencode(point))], hooks=hooks, run_root=run_root) as view:
        assert calls.log == ["post an argument"]
        assert (Path(os.fsdecode(view.sources[0].location)) / "pre").exists()
    assert calls.log == ["post an argument"]


@pytest.mark.root
def test_a_subvolume_that_the_pre_hook_makes_is_seen(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    hooks = Hooks(pre=f"btrfs subvolume create {point}/dump")
    with consistent_view([Source(os.fsencode(point))], hooks=hooks, run_root=run_root) as view:
        assert "2 btrfs snapshots" in view.consistency


def test_a_pre_hook_that_fails_stops_everything(calls: Calls) -> None:
    with (
        pytest.raises(DiskprepError, match=r"--pre-hook: .* exit status 3: said fails") as caught,
        consistent_view(calls.sources, kind=ViewKind.NONE, hooks=Hooks(pre=calls.fails, post=calls.post)),
    ):
        pytest.fail("the block must not be entered")
    assert "nothing was taken" in caught.value.hint
    assert calls.log == ["fails an argument"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_post_runs_after_a_failure_too(calls: Calls, error: BaseException) -> None:
    hooks = Hooks(pre=calls.pre, post=calls.post)
    with pytest.raises(type(error)), consistent_view(calls.sources, kind=ViewKind.NONE, hooks=hooks):
        raise error
    assert calls.log == ["pre an argument", "post an argument"]


@pytest.mark.root
def test_post_runs_when_the_snapshot_cannot_be_taken(
    calls: Calls, make_volume: MakeVolume, run_root: Path, tmp_path: Path
) -> None:
    point = make_volume("btrfs")
    run_root.mkdir()
    run_root.chmod(0o777)  # is refused
    hooks, sources = Hooks(pre=calls.pre, post=calls.post), [Source(os.fsencode(point))]
    with (
        pytest.raises(DiskprepError, match="can be written by others"),
        consistent_view(sources, kind=ViewKind.BTRFS, hooks=hooks, run_root=run_root),
    ):
        pass
    assert calls.log == ["pre an argument", "post an argument"]
    heard: list[Event] = []
    with consistent_view(sources, hooks=hooks, run_root=run_root, emit=heard.append) as view:
        assert view.kind is ViewKind.NONE  # auto goes on, and says so
        assert calls.log[2:] == ["pre an argument"]
    assert calls.log[2:] == ["pre an argument", "post an argument"]
    assert [note.text[:12] for note in heard if isinstance(note, Note)] == ["no snapshot:"]


@pytest.mark.root
def test_a_post_hook_that_fails_is_an_error_and_nothing_stays(
    calls: Calls, make_volume: MakeVolume, run_root: Path
) -> None:
    point = make_volume("btrfs")
    with (
        pytest.raises(DiskprepError, match=r"--post-hook: .* said fails") as caught,
        consistent_view([Source(os.fsencode(point))], hooks=Hooks(post=calls.fails), run_root=run_root),
    ):
        pytest.fail("the block must not be entered")
    assert "still in effect" in caught.value.hint
    assert list(run_root.iterdir()) == []
    assert calls.log == ["fails an argument"]


def test_a_post_hook_that_fails_does_not_hide_the_first_error(calls: Calls) -> None:
    heard: list[Event] = []
    hooks = Hooks(pre=calls.pre, post=calls.fails)
    with (
        pytest.raises(RuntimeError, match="boom"),
        consistent_view(calls.sources, kind=ViewKind.NONE, hooks=hooks, emit=heard.append),
    ):
        raise RuntimeError("boom")
    assert [note.text for note in heard if isinstance(note, Note) and "--post-hook" in note.text] != []


def test_what_is_wrong_is_told_before_anything_runs(calls: Calls) -> None:
    for hooks, words in (
        (Hooks(pre=calls.pre, post="'unbalanced"), "cannot be split"),
        (Hooks(pre=calls.pre, post="no-such-program x"), "there is no program no-such-program"),
    ):
        with pytest.raises(UsageError, match=words), consistent_view(calls.sources, hooks=hooks):
            pass
    missing = [Source(os.fsencode(calls.source / "missing"))]
    with pytest.raises(NotFound), consistent_view(missing, hooks=Hooks(pre=calls.pre)):
        pass
    with (
        pytest.raises(UsageError, match="--snapshot zfs"),
        consistent_view(calls.sources, kind=ViewKind.ZFS, hooks=Hooks(pre=calls.pre)),
    ):
        pass
    assert calls.log == []


def test_hooks_see_a_clean_environment_and_no_shell(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISKPREP_TEST", "seen")
    hooks = Hooks(pre=f"sh -c 'env > {tmp_path}/environment'", post=f"touch {tmp_path}/$HOME;x")
    with consistent_view(calls.sources, kind=ViewKind.NONE, hooks=hooks):
        assert "DISKPREP_TEST" not in (tmp_path / "environment").read_text()
    assert (tmp_path / "$HOME;x").exists()


def test_the_options_are_what_commands_need() -> None:
    application = typer.Typer()

    @application.command()
    def command(
        snapshot: viewing.SnapshotOption = ViewKind.AUTO,
        pre_hook: viewing.PreHook = "",
        post_hook: viewing.PostHook = "",
        _other: Annotated[bool, typer.Option("--other")] = False,
    ) -> None:
        print(repr((snapshot, Hooks(pre=pre_hook, post=post_hook))))

    done = CliRunner().invoke(application, ["--snapshot", "lvm", "--pre-hook", "a b"])
    assert done.output == f"{(ViewKind.LVM, Hooks(pre='a b'))!r}\n"
    assert CliRunner().invoke(application, ["--snapshot", "vss"]).exit_code == 2
