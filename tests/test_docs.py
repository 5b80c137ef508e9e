"""What the documents say about the code is true."""

from __future__ import annotations

import re
from pathlib import Path

from diskprep import errors

_ROOT = Path(__file__).parent.parent


def _classes() -> list[type[errors.DiskprepError]]:
    found: list[type[errors.DiskprepError]] = []
    pending = [errors.DiskprepError]
    while pending:
        for child in pending.pop().__subclasses__():
            if child.__module__ == "diskprep.errors":
                found.append(child)
            pending.append(child)
    return found


def test_every_exit_code_has_one_class_and_one_row() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (_ROOT / "docs/reference/exit-codes.md").read_text(), re.MULTILINE)
    assert sorted((int(code), name) for code, name in rows) == sorted((c.exit_code, c.__name__) for c in _classes())
    codes = [c.exit_code for c in _classes()]
    assert len(set(codes)) == len(codes)


def test_every_package_stands_in_the_architecture() -> None:
    text = (_ROOT / "docs/architecture.md").read_text()
    packages = [p.name for p in (_ROOT / "diskprep").iterdir() if (p / "__init__.py").exists()]
    modules = [p.stem for p in (_ROOT / "diskprep").glob("*.py") if not p.stem.startswith("__")]
    assert [name for name in packages + modules if not re.search(rf"\b{name}\b", text)] == []


def test_the_licence_is_stated_once_and_whole() -> None:
    assert 'license = "GPL-3.0-or-later"' in (_ROOT / "pyproject.toml").read_text()


def test_the_readme_names_the_two_commands() -> None:
    text = (_ROOT / "README.md").read_text()
    assert "make rehearse" in text
    assert "make test" in text


def test_the_project_names_no_registry_and_no_machine() -> None:
    registry = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|npmjs\.com")
    machine = re.compile(r"(?<![\w.])/(work|farm)/")
    wrong = []
    for path in _ROOT.rglob("*"):
        relative = path.relative_to(_ROOT)
        hidden = relative.parts[0].startswith(".") and relative.parts[0] != ".ci"
        if hidden or not path.is_file() or path == Path(__file__):
            continue
        if path.suffix in {".pyc", ".nbi", ".nbc"}:
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        wrong += [f"{relative}: {m.group()}" for p in (registry, machine) for m in p.finditer(text)]
    assert wrong == []
