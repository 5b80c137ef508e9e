"""These tests take minutes and need what `.ci/vm-image` makes: they run when they are asked for by name, `make vm`."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless a path in it, or the folder, stands on the command line."""
    here = Path(__file__).parent
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(here) for path in named) else True
