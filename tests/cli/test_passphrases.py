"""Where a passphrase may come from, what is told of it, and `diskprep vault passphrase`."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import diskprep, diskprep_json, need, need_mounts, run

from diskprep import secrets
from diskprep.errors import UsageError, WrongPassphrase
from diskprep.repository import keys
from diskprep.repository.repository import create, open_repository
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore

OLD = "canary old passphrase"
NEW = "canary new passphrase"
CHEAP = keys.ScryptCost(n=16, r=1, p=1)


class Vault:
    """A repository, files with the old and a new passphrase, and the command."""

    def __init__(self, base: Path) -> None:
        self.root, self.store = base / "vault", DirectoryStore(base / "vault")
        self.root.mkdir()
        self.slot = create(self.store, Secret(OLD), cost=CHEAP).slot
        self.old, self.new = base / "old", base / "new"
        for file, passphrase in ((self.old, OLD), (self.new, NEW)):
            file.write_text(passphrase + "\n")
            file.chmod(0o600)

    def __call__(self, word: str, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        opening = ("--vault", self.root, "--passphrase-file", self.old)
        return diskprep("vault", "passphrase", word, *arguments, *opening, code=code)

    def bare(self, *arguments: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
        """`list` with no passphrase but what the arguments say."""
        argv = [sys.executable, "-m", "diskprep", "vault", "passphrase", "list", "--vault", self.root, *arguments]
        options = {"stdin": subprocess.DEVNULL, **more}
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]

    def key_files(self) -> set[str]:
        return {item.name for item in self.store.list("keys/")}

    def opens(self, passphrase: str) -> bool:
        try:
            open_repository(self.store, Secret(passphrase))
        except WrongPassphrase:
            return False
        return True


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


# -- the commands


def test_the_slots_of_a_vault_from_the_first_to_the_last(vault: Vault) -> None:
    out, err = vault("add", "--new-passphrase-file", vault.new)
    added = re.findall(r"^slot ([0-9a-f]{8}) was added$", out)[0]
    assert "next: diskprep vault passphrase list" in err
    document = diskprep_json("vault", "passphrase", "list", "--vault", vault.root, "--passphrase-file", vault.old)
    states = {slot["id"][:8]: (slot["current"], slot["scrypt"]["n"]) for slot in document["slots"]}
    assert states == {vault.slot[:8]: (True, 16), added: (False, 32768)}
    assert vault("remove", vault.slot[:8], code=2)[1].count("\n") == 2
    out, _err = vault("change", "--new-passphrase-command", "echo a third passphrase, long")
    assert f"in place of slot {vault.slot[:8]}" in out
    assert (vault.opens(OLD), vault.opens(NEW), vault.opens("a third passphrase, long")) == (False, True, True)
    assert vault("list", code=12)[1].startswith("diskprep: no key")
    vault.old.write_text("a third passphrase, long")
    assert vault("remove", added)[0] == f"slot {added} was removed\n"
    table = vault("list")[0].splitlines()
    assert len(table) == 3
    assert table[2].endswith("current")
    assert "N=32768 r=8 p=5, 32 MiB" in table[2]


def test_a_slot_that_is_damaged_is_told_and_one_with_an_odd_label_steers_no_terminal(vault: Vault) -> None:
    vault.store.write("keys/" + "ab" * 32, [b"junk"])
    document = json.loads(vault.store.read(f"keys/{vault.slot}"))
    vault.store.write("keys/" + "cd" * 32, [json.dumps({**document, "hostname": "a\x1b[2Jb"}).encode()])
    out, err = vault("list")
    assert re.search(r"^abababab .* damaged$", out, re.MULTILINE)
    assert "slot abababab: a key file is damaged: diskprep vault passphrase remove abababab" in err
    assert "\x1b" not in out + err
    vault("remove", "abab")
    assert "abababab" not in vault("list")[0]


def test_what_does_not_fit_is_refused_with_its_exit_code(vault: Vault) -> None:
    before = vault.key_files()
    assert "passphrase change" in vault("remove", vault.slot[:8], code=2)[1]
    assert "passphrase list" in vault("remove", "0" * 9, code=10)[1]
    assert "one way" in vault("add", "--generate", "--new-passphrase-file", vault.new, code=2)[1]
    assert "--new-passphrase-file" in vault("add", code=2)[1]
    assert "already" in vault("add", "--new-passphrase-file", vault.old, code=2)[1]
    vault.new.write_text("too short")
    assert "16 characters" in vault("change", "--new-passphrase-file", vault.new, code=2)[1]
    with open_repository(vault.store, Secret(OLD)).lock():
        vault("change", "--new-passphrase-command", f"echo {NEW}", code=11)
    assert vault.key_files() == before


def test_a_sealed_staging_is_refused_before_a_passphrase_is_shown(vault: Vault, tmp_path: Path) -> None:
    vault.root.rename(tmp_path / "repository")
    vault.root.symlink_to("repository")
    (tmp_path / "seal.json").write_text("{}")
    assert len(vault("list")[0].splitlines()) == 3
    for word in ("add", "change"):
        out, err = vault(word, "--generate", code=42)
        assert out == ""
        assert "publish it" in err


# -- a passphrase that is made


def test_a_generated_passphrase_is_shown_once_and_kept_nowhere(vault: Vault, tmp_path: Path) -> None:
    out, err = vault("change", "--generate")
    shown, said = out.splitlines()
    made = shown.removeprefix("passphrase: ")
    assert re.fullmatch(r"([a-z2-9]{4}-){7}[a-z2-9]{4}", made)
    assert "it is not stored, and will not be shown again" in err
    assert made not in said + err
    assert (vault.opens(OLD), vault.opens(made)) == (False, True)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and made.encode() in path.read_bytes()]
    assert kept == []


def test_a_passphrase_that_cannot_be_shown_is_not_used(vault: Vault, tmp_path: Path) -> None:
    before = vault.key_files()
    argv = [sys.executable, "-m", "diskprep", "vault", "passphrase", "change", "--generate"]
    argv += ["--vault", str(vault.root), "--passphrase-file", str(vault.old)]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(argv, stdout=full, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode == 5
    with (tmp_path / "journal").open("wb") as journal:
        status = os.fstat(journal.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        done = subprocess.run(
            argv, stdout=journal, stderr=subprocess.PIPE, env=environment, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert "LoadCredential" in done.stderr
    assert (tmp_path / "journal").read_bytes() == b""
    assert vault.key_files() == before


# -- where it comes from


def test_it_comes_from_a_descriptor_a_program_or_systemd(vault: Vault, tmp_path: Path) -> None:
    with vault.old.open() as stream:
        assert vault.bare("--passphrase-fd", "0", stdin=stream).returncode == 0
    reader, writer = os.pipe()
    os.write(writer, OLD.encode())
    os.close(writer)
    assert vault.bare("--passphrase-fd", str(reader), pass_fds=(reader,)).returncode == 0
    os.close(reader)
    (tmp_path / "it's here").write_text(OLD)
    assert vault.bare("--passphrase-command", f"cat {shlex.quote(str(tmp_path))}/'it'\\''s here'").returncode == 0
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/diskprep.passphrase").write_text(OLD + "\n")
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert vault.bare(env=environment).returncode == 0
    assert vault.bare("--passphrase-file", vault.new, env=environment).returncode == 12  # what is named comes first


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--passphrase-command COMMAND"),
        (("--passphrase-file", "old", "--passphrase-command", "cat old"), "one way"),
        (("--passphrase-file", "absent"), "cannot read the passphrase file"),
        (("--passphrase-file", "/dev/null"), "is empty"),
        (("--passphrase-file", "/dev/zero"), "more than 1048576 bytes"),
        (("--passphrase-fd", "77"), "Bad file descriptor"),
        (("--passphrase-fd", "-1"), "descriptor -1"),
        (("--passphrase-command", ""), "empty"),
        (("--passphrase-command", "echo 'canary"), "quotation mark"),
        (("--passphrase-command", "canary-program"), "cannot be started: No such file"),
        (("--passphrase-command", "sh -c 'echo canary; exit 7'"), "exit status 7"),
        (("--passphrase-command", "sh -c 'kill -9 $$'"), "exit status -9"),
        (("--passphrase-command", "true"), "is empty"),
        (("--passphrase-command", "cat /dev/zero"), "more than 1048576 bytes"),
        (("--passphrase-command", "echo $HOME; canary"), "no key"),  # no shell looks at it
    ],
)
def test_a_passphrase_that_does_not_come_is_told_without_what_came(
    vault: Vault, arguments: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    done = vault.bare(*arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})  # noqa: PTH109
    assert done.returncode == (12 if reason == "no key" else 2)
    assert reason in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_that_is_asked_has_the_terminal_for_its_errors_and_the_users_environment(vault: Vault) -> None:
    ask = "sh -c 'echo unlock the key store first >&2; printf %s \"$KEPT\"'"
    done = vault.bare("--passphrase-command", ask, env={**os.environ, "KEPT": OLD})
    assert done.returncode == 0
    assert "unlock the key store first" in done.stderr


def test_one_descriptor_is_not_two_passphrases(vault: Vault) -> None:
    before = vault.key_files()
    argv = [sys.executable, "-m", "diskprep", "vault", "passphrase", "add", "--vault", str(vault.root)]
    argv += ["--passphrase-fd", "0", "--new-passphrase-fd", "0"]
    with vault.old.open() as stream:
        done = subprocess.run(argv, stdin=stream, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert vault.key_files() == before


def test_a_file_that_others_can_read_is_warned_of(vault: Vault) -> None:
    assert "warning" not in vault("list")[1]
    for mode in (0o640, 0o604, 0o620):
        vault.old.chmod(mode)
        assert f"warning: others can read {vault.old}" in vault("list")[1]
    reader, writer = os.pipe()
    os.write(writer, OLD.encode())
    os.close(writer)
    done = vault.bare("--passphrase-file", f"/dev/fd/{reader}", pass_fds=(reader,))
    os.close(reader)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_system_without_modes_is_not_warned_of(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    need_mounts(vault.old)
    vault.old.chmod(0o644)
    assert secrets.is_open_to_others(vault.old)
    kind = run("stat", "-f", "-c", "%T", vault.old).strip()
    found = run("findmnt", "-n", "-o", "FSTYPE", "-T", vault.old).strip()
    monkeypatch.setattr(secrets, "_WITHOUT_MODES", {kind, found})
    assert not secrets.is_open_to_others(vault.old)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b" with spaces \r\n\n", "with spaces"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("\ufeffwide".encode("utf-16-le"), "wide"),
        (b"l\xe4tin", "l\udce4tin"),
        (b"two\nlines\n", "two\nlines"),
        (b"a\x00b\x1c", "a\x00b\x1c"),
        (b"x" * (1 << 20), "x" * (1 << 20)),
    ],
)
def test_a_file_loses_the_white_space_around_it_and_nothing_else(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "p").write_bytes(content)
    assert secrets.read_passphrase_file(tmp_path / "p").reveal() == value
    with (tmp_path / "p").open("rb") as stream:
        assert secrets.read_passphrase_fd(os.dup(stream.fileno())).reveal() == value


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xef\xbb\xbf", b"\xff\xfea", b"x" * ((1 << 20) + 1)])
def test_a_file_with_nothing_or_too_much_in_it_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UsageError):
        secrets.read_passphrase_file(tmp_path / "p")


# -- the terminal


def test_at_a_terminal_the_new_passphrase_is_asked_for_twice_and_never_echoed(vault: Vault) -> None:
    child, terminal = pty.fork()
    if child == 0:
        command = ("-m", "diskprep", "vault", "passphrase", "change", "--vault", str(vault.root))
        os.execv(sys.executable, [sys.executable, *command])
    seen = ""
    answers = [(": ", OLD), ("new passphrase: ", NEW), (": ", NEW + "x"), ("new passphrase: ", NEW), (": ", NEW)]
    for prompt, answer in answers:
        seen += _until(terminal, prompt)
        os.write(terminal, answer.encode() + b"\n")
    seen += _until(terminal, "next: ")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    assert "canary" not in seen
    assert "do not match" in seen
    assert (vault.opens(OLD), vault.opens(NEW)) == (False, True)


def _until(terminal: int, text: str) -> str:
    seen, give_up_s = "", time.monotonic() + 30
    while not re.search(re.escape(text) + r"\s*$" if text != "next: " else text, seen):
        assert select.select([terminal], [], [], max(0.0, give_up_s - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096).decode()
    time.sleep(0.2)  # until it listens without an echo
    return seen


# -- the canary


def test_no_passphrase_is_in_an_argument_an_environment_a_message_or_a_file(vault: Vault, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    trace = tmp_path / "trace"
    watch = [
        need("strace"),
        "-f",
        "-v",
        "-s",
        "65536",
        "-e",
        "trace=execve",
        "-o",
        trace,
        sys.executable,
        "-m",
        "diskprep",
    ]
    commands: list[tuple[str, tuple[str | Path, ...]]] = [
        ("add", ("--passphrase-file", vault.old, "--new-passphrase-command", f"cat {vault.new}")),
        ("list", ("--passphrase-command", f"cat {vault.new}")),
        ("change", ("--passphrase-file", vault.old, "--new-passphrase-file", vault.new)),
        ("change", ("--passphrase-file", vault.old, "--new-passphrase-file", vault.old)),  # fails
        ("list", ("--passphrase-command", f"sh -c 'cat {vault.new}; exit 3'")),  # fails
    ]
    told = ""
    for word, arguments in commands:
        argv = [str(part) for part in (*watch, "vault", "passphrase", word, "--vault", vault.root, *arguments)]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
        )
        told += done.stdout + done.stderr + trace.read_text(errors="replace")
    assert "/cat" in told
    assert "exit status 3" in told
    assert vault.opens(NEW)
    assert "canary" not in told
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p not in (vault.old, vault.new)]
    assert [p for p in written if b"canary" in p.read_bytes()] == []
