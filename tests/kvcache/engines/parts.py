"""Parts of inference engines' packages, imported without the rest.

An engine's storage code is Python over torch, but its packages pull in kernels, servers and model code when they are imported. Here a
package is entered as a bare folder: its `__init__` does not run, its modules can be imported one by one. What these only mention (a
type for an annotation, a question about the GPU) is stood in for by modules of a few names. What is tested is always the engine's code.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest


def require(package: str, name: str) -> None:
    """Skip the calling test module where the engine is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} is not here: ./deploy/test --engines", allow_module_level=True)


def enter(*packages: str) -> None:
    """Make packages importable as bare folders, outer ones first."""
    for name in packages:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None, name
        bare = ModuleType(name)
        bare.__spec__, bare.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules[name] = bare


def stand_in(module: str, **names: Any) -> ModuleType:
    """A module with only these names."""
    made = sys.modules.setdefault(module, ModuleType(module))
    for name, value in names.items():
        setattr(made, name, value)
    return made


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Something of an engine's replaced for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
