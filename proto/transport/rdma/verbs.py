"""Finds pyverbs, the verbs API for Python.

It is no package of the index: distributions build it for their own interpreter (python3-pyverbs). A virtual environment of the same
Python version can use that build: here only this one package is loaded from where the distribution keeps it, not all that lies beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...errors import Status, error

INSTALL = (
    "install python3-pyverbs and ibverbs-providers (Debian, Ubuntu) or python3-pyverbs and rdma-core (Fedora, RHEL)"
)
_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"


def _places() -> list[Path]:
    """Where distributions keep packages for this version of Python."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [
        Path("/usr/lib/python3/dist-packages"),
        Path(f"/usr/lib64/{version}/site-packages"),
        Path(f"/usr/lib/{version}/site-packages"),
    ]


def find(places: list[Path] | None = None) -> Path | None:
    """The folder of pyverbs that this interpreter can load; None if it is importable as it is. Raises UNSUPPORTED with what to install."""
    if places is None:
        if importlib.util.find_spec("pyverbs") is not None:
            return None
        places = _places()
    others = []
    for place in places:
        folder = place / "pyverbs"
        if (folder / f"device{_SUFFIX}").exists():
            return folder
        others += [found.name for found in folder.glob("device.*.so")]
    if others:
        raise error(
            Status.UNSUPPORTED,
            f"pyverbs is installed for another Python ({others[0]}, this one needs {_SUFFIX}): use an environment of the"
            " distribution's Python version",
        )
    raise error(Status.UNSUPPORTED, f"pyverbs is not installed: {INSTALL}")


def _adopt(folder: Path) -> None:
    """Make one package importable from where it lies."""
    spec = importlib.util.spec_from_file_location(
        "pyverbs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyverbs"] = module
    spec.loader.exec_module(module)


@cache
def load() -> Any:
    """pyverbs' classes and constants that are used here, in one namespace. Raises UNSUPPORTED."""
    folder = find()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        if folder is not None:
            _adopt(folder)
        names = ("addr", "cq", "device", "enums", "mr", "pd", "pyverbs_error", "qp", "wr")
        modules = {name: importlib.import_module(f"pyverbs.{name}") for name in names}
    except ImportError as failed:
        sys.modules.pop("pyverbs", None)
        raise error(Status.UNSUPPORTED, f"pyverbs cannot be loaded ({failed}): {INSTALL}") from failed
    finally:
        root.handlers[:], root.level = handlers, level  # its import configures the program's log
    return SimpleNamespace(
        AHAttr=modules["addr"].AHAttr,
        GID=modules["addr"].GID,
        GlobalRoute=modules["addr"].GlobalRoute,
        CQ=modules["cq"].CQ,
        CompChannel=modules["cq"].CompChannel,
        Context=modules["device"].Context,
        MR=modules["mr"].MR,
        PD=modules["pd"].PD,
        Failed=modules["pyverbs_error"].PyverbsRDMAError,
        QP=modules["qp"].QP,
        QPAttr=modules["qp"].QPAttr,
        QPCap=modules["qp"].QPCap,
        QPInitAttr=modules["qp"].QPInitAttr,
        RecvWR=modules["wr"].RecvWR,
        SGE=modules["wr"].SGE,
        SendWR=modules["wr"].SendWR,
        e=modules["enums"],
    )
