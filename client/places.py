"""Where data sets and checkpoints lie: in a cluster, or in a local directory, as one argument says."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ..proto.errors import Status, error
from ..proto.settings import SCHEME


class Place(NamedTuple):
    cluster: str  # URL of its root; "" where it is on this machine
    path: str  # absolute


def place_of(where: str | os.PathLike[str]) -> Place:
    """What an `ember://` URL, a `file://` URL or a local path names. Raises INVALID for any other URL."""
    text = os.fspath(where)
    if text.startswith(f"{SCHEME}://"):
        host, _, path = text[len(SCHEME) + 3 :].partition("/")
        return Place(f"{SCHEME}://{host}/", "/" + path.rstrip("/"))
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif "://" in text:
        raise error(Status.INVALID, f"{text!r}: neither an {SCHEME}:// URL nor a local path")
    return Place("", os.path.abspath(text))
