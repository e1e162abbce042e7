"""fsspec's own abstract suites, all of them, against a real cluster in processes of its own."""

import uuid

import fsspec
import fsspec.tests.abstract as abstract
import pytest


class EmberFixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, cluster):
        return fsspec.filesystem("ember", auto_mkdir=True, **cluster.storage_options)

    @pytest.fixture
    def fs_path(self, fs):
        root = f"/abstract-{uuid.uuid4().hex}"
        fs.mkdir(root)
        yield root
        fs.rm(root, recursive=True)

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)


class TestCopy(abstract.AbstractCopyTests, EmberFixtures):
    pass


class TestGet(abstract.AbstractGetTests, EmberFixtures):
    pass


class TestPut(abstract.AbstractPutTests, EmberFixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, EmberFixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, EmberFixtures):
    pass


def test_all_137_cases_are_collected():
    """44 methods make 137 cases with their parameters (the three glob tests have 32 edge cases each)."""
    suites = (TestCopy, TestGet, TestPut, TestOpen, TestPipe)
    cases = 0
    for suite in suites:
        for name in dir(suite):
            if name.startswith("test_"):
                marks = getattr(getattr(suite, name), "pytestmark", [])
                sizes = [len(m.args[1]) for m in marks if m.name == "parametrize"]
                cases += sizes[0] if sizes else 1
    assert cases == 137
