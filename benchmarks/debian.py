"""The newest restic that Debian has, from the mirror this computer's apt uses, without installing it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def newest_restic(cache: Path) -> Path:
    """The program of SUITE's package, unpacked below `cache`; else the one that is installed, which is then said.

    Raises SystemExit when there is neither.
    """
    program = cache / "restic" / "usr" / "bin" / "restic"
    if program.exists():
        return program
    try:
        _fetch("restic", cache)
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        installed = shutil.which("restic")
        if installed is None:
            raise SystemExit(f"no restic: {error}\ninstall one: apt-get install restic") from None
        print(f"note: {SUITE}'s restic cannot be had ({error}); the installed one takes part", file=sys.stderr)
        return Path(installed)
    return program


def _fetch(package: str, cache: Path) -> None:
    """Download with apt into lists and an archive of our own, so that the computer's package lists stay as they are."""
    apt = cache / "apt"
    for folder in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    sources = apt / "debian.sources"
    sources.write_text(f"Types: deb\nURIs: {_mirror()}\nSuites: {SUITE}\nComponents: main\nSigned-By: {KEYRING}\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",  # the cache need not be open to the user _apt
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    for old in apt.glob(f"{package}_*.deb"):
        old.unlink()
    for command in (["update"], ["download", f"{package}/{SUITE}"]):
        subprocess.run(["apt-get", "-qq", *options, *command], cwd=apt, check=True, stdout=sys.stderr)
    (archive,) = apt.glob(f"{package}_*.deb")
    part = cache / f"{package}.part"
    shutil.rmtree(part, ignore_errors=True)
    subprocess.run(["dpkg", "-x", archive, part], check=True)
    part.rename(cache / package)


def _mirror() -> str:
    """Where this computer's apt gets Debian's main archive from. Raises LookupError."""
    form = "$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    )
    for line in listed.stdout.splitlines():
        origin, component, release, uri = line.split(" ", 3)
        if (origin, component) == ("Debian", "main") and "-" not in release:  # not updates, not security
            return uri
    raise LookupError("apt knows no Debian mirror")
