"""What a URL or path of a data set or checkpoint means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberfs.client.checkpoints.folders import ClusterFolder, LocalFolder, folder_of
from emberfs.client.places import Place, place_of
from emberfs.proto.errors import StatusError


@pytest.mark.parametrize(
    "where, place",
    [
        ("ember:///", Place("ember:///", "/")),
        ("ember://", Place("ember:///", "/")),
        ("ember://host:9440", Place("ember://host:9440/", "/")),
        ("ember://host:9440/a/b/", Place("ember://host:9440/", "/a/b")),
        ("ember://%2Fdata%2Fdir/a b%41#?", Place("ember://%2Fdata%2Fdir/", "/a b%41#?")),
        ("file:///tmp/x%20y", Place("", "/tmp/x y")),
        ("relative", Place("", os.path.abspath("relative"))),
        (Path("/tmp/x"), Place("", "/tmp/x")),
    ],
)
def test_what_it_means(where: str | Path, place: Place) -> None:
    assert place_of(where) == place


def test_another_url_is_refused() -> None:
    with pytest.raises(StatusError, match="neither"):
        place_of("s3://bucket/key")


def test_folders_of_folders() -> None:
    root = folder_of("ember:///")
    assert isinstance(root, ClusterFolder) and root.child("a").child("b").url == "ember:///a/b"
    assert folder_of(root.child("a").url).url == "ember:///a"
    assert isinstance(folder_of("/tmp"), LocalFolder) and folder_of("/tmp").child("a").url == "/tmp/a"
