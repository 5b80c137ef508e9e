"""Who may know whom. Data flows one way, and each side effect has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest

_ROOT = Path(__file__).parent.parent

#: From the top to the bottom; a module imports from lower layers only. Packages of one layer do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("diskprep.__main__",),
    ("diskprep.cli",),
    ("diskprep.rehearsal",),
    (
        "diskprep.staging",
        "diskprep.disk",
        "diskprep.importjob",
        "diskprep.datacenter",
        "diskprep.vault",
        "diskprep.view",
        "diskprep.cleanup",
        "diskprep.compare",
        "diskprep.replica",
    ),
    ("diskprep.repository", "diskprep.volume", "diskprep.exchange", "diskprep.source", "diskprep.repair", "journal"),
    ("diskprep.seal", "diskprep.seed", "diskprep.escrow"),
    ("diskprep.store",),
    ("diskprep.durable", "diskprep.process"),
    (
        "diskprep.errors",
        "diskprep.events",
        "diskprep.secrets",
        "diskprep.clock",
        "diskprep.interrupts",
        "diskprep.compiled",
        "diskprep.reach",
    ),
)

#: What a layer-mate may know of another all the same, and why.
ALLOWED = {
    ("diskprep.cleanup", "diskprep.vault"),  # a certificate is what allows a deletion
    ("diskprep.replica", "diskprep.compare"),
}

#: module prefix that may be imported -> the only modules that may import it
DOORS = {
    "subprocess": ("diskprep.process",),
    "azure": (
        "diskprep.importjob.asking",
        "diskprep.importjob.translate",
        "diskprep.importjob.signin",
        "diskprep.store.azure",
        "diskprep.store.azure_errors",
    ),
    "msrest": ("diskprep.importjob.asking",),
    "segno": ("diskprep.importjob.paper",),
    "mfusepy": ("diskprep.vault.fuse",),
    "typer": ("diskprep.cli",),
    "click": ("diskprep.cli",),
    "tqdm": ("diskprep.cli",),
    "sqlite3": ("diskprep.datacenter",),
    "ctypes": ("diskprep.volume.ntfs",),
    "numba": (
        "diskprep.compiled",
        "diskprep.reach",
    ),
    "diskprep.importjob.client": ("diskprep.cli.connecting", "diskprep.rehearsal.journey"),
    "diskprep.store.azure": ("diskprep.cli.stores",),
}


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("diskprep", "journal", include_external_packages=True)


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _layer(module: str) -> tuple[int, str] | None:
    for depth, layer in enumerate(LAYERS):
        for package in layer:
            if _inside(module, package):
                return depth, package
    return None


def _own_modules() -> list[str]:
    return [m for m in _graph().modules if _inside(m, "diskprep") or _inside(m, "journal")]


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in ("diskprep", "journal"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def test_every_module_has_a_layer() -> None:
    assert [m for m in _own_modules() if m != "diskprep" and _layer(m) is None] == []


def test_imports_go_down_the_layers_only() -> None:
    wrong = []
    for importer in _own_modules():
        for imported in _graph().find_modules_directly_imported_by(importer):
            above, below = _layer(importer), _layer(imported)
            if above is None or below is None or above[1] == below[1]:
                continue
            if below[0] <= above[0] and (above[1], below[1]) not in ALLOWED and above[0] < len(LAYERS) - 2:
                wrong.append(f"{importer} -> {imported}")
            if below[0] < above[0]:
                wrong.append(f"{importer} -> {imported} (upwards)")
    assert wrong == []


def test_the_journal_knows_the_standard_library_only() -> None:
    for importer in (m for m in _own_modules() if _inside(m, "journal")):
        for imported in _graph().find_modules_directly_imported_by(importer):
            assert _inside(imported, "journal") or imported.partition(".")[0] in sys.stdlib_module_names, imported


def test_a_repository_knows_no_disk_and_no_service() -> None:
    forbidden = ("diskprep.volume", "diskprep.disk", "diskprep.exchange", "diskprep.importjob", "azure", "msrest")
    for importer in (m for m in _own_modules() if _inside(m, "diskprep.repository")):
        for imported in _graph().find_modules_directly_imported_by(importer):
            assert not any(_inside(imported, name) for name in forbidden), f"{importer} -> {imported}"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_side_effect_has_one_door(library: str) -> None:
    wrong = [
        f"{importer} -> {imported}"
        for importer in _own_modules()
        for imported in _graph().find_modules_directly_imported_by(importer)
        if _inside(imported, library) and not any(_inside(importer, door) for door in DOORS[library])
    ]
    assert wrong == []


def test_help_and_local_folders_wait_for_no_cloud_library() -> None:
    code = (
        "import sys; from diskprep.cli.application import COMMANDS, build; build(COMMANDS); "
        "print('typer' in sys.modules, *({'azure', 'msrest', 'requests', 'tqdm', 'pyudev'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_a_look_at_a_staging_waits_for_no_loop_to_be_compiled() -> None:
    code = (
        "import sys; import diskprep.cli.status; "
        "print('typer' in sys.modules, *({'numba', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in _sources()
        if not _inside(name, "diskprep.cli")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}
    ]
    assert wrong == []


def test_only_the_clock_asks_for_the_time() -> None:
    asks = {("time", "time"), ("time", "monotonic"), ("datetime", "now"), ("datetime", "utcnow"), ("time", "sleep")}
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in _sources()
        if name != "diskprep.clock"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in asks
    ]
    assert wrong == []


def test_no_file_is_longer_than_500_lines() -> None:
    files = [p for top in ("diskprep", "journal", "tests") for p in (_ROOT / top).rglob("*.py")]
    assert [f"{p.name}: {n}" for p in files if (n := len(p.read_text().splitlines())) > 500] == []


def test_nothing_dangerous_is_called() -> None:
    banned = {"eval", "exec", "pickle", "mktemp"}
    wrong = []
    for name, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                shell = any(k.arg == "shell" and getattr(k.value, "value", None) is True for k in node.keywords)
                if called in banned or shell:
                    wrong.append(f"{name}:{node.lineno} {called}")
    assert wrong == []
