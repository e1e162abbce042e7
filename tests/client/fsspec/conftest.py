"""The cluster as fsspec names it: by an authority in URLs, by the option `host` without one."""

from types import SimpleNamespace
from urllib.parse import quote

import pytest


@pytest.fixture(scope="session", name="cluster")
def cluster_names(cluster):
    authority = quote(str(cluster.data), safe="")
    return SimpleNamespace(authority=authority, storage_options={"host": authority}, url_options={})
