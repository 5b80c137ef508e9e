"""Recovery points go by a plan that is told first, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner
from vaults import PASSPHRASE, CutOff, History, assert_whole, in_child, kill, listing, new_history

from diskprep.cli import forgetting
from diskprep.errors import DiskprepError, UsageError
from diskprep.repository import lock as locks
from diskprep.repository.repository import Repository
from diskprep.store.directory import DirectoryStore
from diskprep.vault.forget import ForgetPlan, Wish, forget
from diskprep.vault.retention import Filter, KeepPolicy
from diskprep.vault.settings import change_settings


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """A vault of four recovery points, not to be changed."""
    folder = tmp_path_factory.mktemp("history")
    (folder / "vault").mkdir()
    return new_history(DirectoryStore(folder / "vault"), folder / "source", points=4)


@pytest.fixture
def vault(history: History, tmp_path: Path) -> Repository:
    return history.copied(tmp_path / "vault")


def ids(repository: Repository) -> list[str]:
    return [point.id for point in repository.snapshots()]


def test_the_plan_is_told_before_anything_goes_and_is_what_goes(history: History, vault: Repository) -> None:
    before = ids(vault)
    told: list[ForgetPlan] = []

    def tell(plan: ForgetPlan) -> None:
        told.append(plan)
        assert ids(vault) == before

    wish = Wish(policy=KeepPolicy(last=2))
    dry = forget(vault, wish, dry_run=True, tell=tell)
    done = forget(vault, wish, tell=tell)
    assert told == [dry, done]
    assert dry == done
    assert [point.id for point in done.removed] == [before[1], before[0]]
    assert_whole(history, vault, points=before[2:])
    assert [item.name for item in listing(vault.store) if item.name.startswith("data/")] == [
        item.name for item in listing(history.repository.store) if item.name.startswith("data/")
    ]
    assert forget(vault, wish).removed == ()


def test_named_points_go_and_no_others(history: History, vault: Repository) -> None:
    before = ids(vault)
    plan = forget(vault, Wish(ids=(before[1][:10], "latest")))
    assert {point.id for point in plan.removed} == {before[1], before[3]}
    assert_whole(history, vault, points=[before[0], before[2]])


def test_what_cannot_be_meant_is_refused_and_nothing_goes(vault: Repository) -> None:
    before = ids(vault)
    for make in (
        Wish,
        lambda: Wish(ids=("latest",), policy=KeepPolicy(last=1)),
        lambda: Wish(ids=("latest",), only=Filter(hosts=("host",))),
    ):
        with pytest.raises(UsageError):
            make()
    for wish in (
        Wish(ids=("abcdefabcdef",)),
        Wish(ids=("latest", "")),
        Wish(policy=KeepPolicy(tags=(("no such tag",),))),  # would keep nothing
    ):
        with pytest.raises(UsageError, match=r"recovery point"):
            forget(vault, wish)
    assert ids(vault) == before


def test_other_hosts_are_left_alone(vault: Repository) -> None:
    plan = forget(vault, Wish(policy=KeepPolicy(last=1), only=Filter(hosts=("another",))))
    assert (plan.groups, len(ids(vault))) == ((), 4)


def test_killed_between_two_deletions_the_same_command_ends_it(history: History, vault: Repository) -> None:
    wish = Wish(policy=KeepPolicy(last=1))
    before = ids(vault)
    cut = history.over(CutOff(vault.store, 2, kill))  # the lock, one recovery point, and the next
    assert in_child(lambda: forget(cut, wish)) == -9
    assert len(ids(vault)) == 3
    assert_whole(history, vault)
    forget(vault, wish)
    assert_whole(history, vault, points=before[-1:])
    assert list(vault.store.list("locks/")) == []


def test_a_lock_that_is_lost_ends_it(history: History, vault: Repository) -> None:
    def unlock(_what: str, _name: str) -> None:
        for item in list(vault.store.list("locks/")):
            vault.store.delete(item.name)

    with pytest.raises(DiskprepError, match="lock"):
        forget(history.over(CutOff(vault.store, 1, unlock)), Wish(policy=KeepPolicy(last=1)))
    assert len(ids(vault)) == 3


# -- the command line


class Commands:
    def __init__(self, vault: Repository, folder: Path) -> None:
        self._app = typer.Typer()
        self._app.command("forget")(forgetting.forget)
        self._app.command("prune")(forgetting.prune)
        self._vault = vault
        self._file = folder / "passphrase"
        self._file.write_text(PASSPHRASE)
        self._file.chmod(0o600)

    def __call__(self, *words: str) -> str:
        options = ["--vault", self._vault.store.location, "--passphrase-file", str(self._file), "--quiet"]
        done = CliRunner().invoke(self._app, [*words, *options], standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    def json(self, *words: str) -> dict[str, Any]:
        document = json.loads(self(*words, "--json"))
        assert isinstance(document, dict)
        return document


@pytest.fixture
def commands(vault: Repository, tmp_path: Path) -> Iterator[Commands]:
    return Commands(vault, tmp_path)  # type: ignore[return-value]


def test_a_dry_run_tells_what_would_go_and_what_that_would_free(
    history: History, vault: Repository, commands: Commands
) -> None:
    before = listing(vault.store)
    said = commands("forget", "--keep-last", "1", "--prune", "--max-unused", "0", "--dry-run")
    assert "stays: last" in said
    assert "1 recovery points stay, 3 go" in said
    assert "freed in the end" in said
    document = commands.json("forget", "--keep-last", "1", "--prune", "--max-unused", "0", "--dry-run")
    assert listing(vault.store) == before
    done = commands.json("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    assert document == done | {"dry_run": True}
    assert done["prune"]["freed_bytes"] > 4_000_000
    assert_whole(history, vault, points=[ids(history.repository)[-1]])
    assert commands.json("prune", "-n")["prune"]["freed_bytes"] == 0


def test_without_a_policy_the_vaults_own_is_used(vault: Repository, commands: Commands) -> None:
    with pytest.raises(UsageError, match="nothing says what to keep"):
        commands("forget")
    change_settings(vault, daily=7)
    assert "1 recovery points stay" in commands("forget", "--dry-run", "--group-by", "") or len(ids(vault)) == 4
    plan = commands.json("forget")
    assert {reason for kept in plan["groups"][0]["kept"] for reason in kept["reasons"]} <= {"daily", "oldest, daily"}
    assert len(ids(vault)) < 4
    for own in (("--keep-last", "1"), (ids(vault)[0],)):
        assert commands.json("forget", "--dry-run", *own)["groups"]


@pytest.mark.parametrize(
    "words",
    [
        ("forget", "--keep-daily", "some"),
        ("forget", "--keep-daily", "-1"),
        ("forget", "--keep-within", "5 days"),
        ("forget", "--keep-last", "1", "--group-by", "size"),
        ("forget", "--keep-last", "1", "latest"),
        ("prune", "--max-unused", "101%"),
        ("prune", "--max-unused", "lots"),
        ("prune", "--max-repack-size", "5%"),
    ],
)
def test_nonsense_is_refused_before_the_vault_is_touched(
    vault: Repository, commands: Commands, words: tuple[str, ...]
) -> None:
    before = listing(vault.store)
    with pytest.raises(UsageError):
        commands(*words)
    assert listing(vault.store) == before
