"""pyarrow's file-system tests, re-pointed at us: those of its module that take a file system."""

import uuid

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pyarrow.tests import test_fs as theirs

# Names are imported one by one: the rest of that module tests S3, GCS, HDFS and local paths.
from pyarrow.tests.test_fs import (  # noqa: F401
    pickle_with_and_without_subtree_filesystem,
    test_copy_file,
    test_create_dir,
    test_delete_dir,
    test_delete_dir_contents,
    test_delete_dir_with_explicit_subdir,
    test_delete_file,
    test_filesystem_equals_none,
    test_filesystem_is_functional_after_pickling,
    test_filesystem_pickling,
    test_get_file_info,
    test_get_file_info_with_selector,
    test_move_directory,
    test_move_file,
    test_non_path_like_input_raises,
    test_normalize_path,
    test_open_append_stream,
    test_open_input_file,
    test_open_input_stream,
    test_open_input_stream_not_found,
    test_open_output_stream,
    test_open_output_stream_metadata,
)


@pytest.fixture
def filesystem_config(cluster):
    inner = fsspec.filesystem("ember", **cluster.storage_options)
    root = f"/pyarrow-{uuid.uuid4().hex}"
    inner.mkdir(root)
    yield {
        "fs": PyFileSystem(FSSpecHandler(inner)),
        "pathfn": lambda path: f"{root}/{path}",
        "allow_move_dir": True,
        "allow_append_to_file": True,
    }
    inner.rm(root, recursive=True)


@pytest.fixture
def fs(filesystem_config):
    return filesystem_config["fs"]


@pytest.fixture
def pathfn(filesystem_config):
    return filesystem_config["pathfn"]


@pytest.fixture
def allow_move_dir(filesystem_config):
    return filesystem_config["allow_move_dir"]


@pytest.fixture
def allow_append_to_file(filesystem_config):
    return filesystem_config["allow_append_to_file"]


@pytest.fixture(params=["builtin_pickle"])
def pickle_module(request):
    import pickle

    return pickle


def test_every_test_of_theirs_that_takes_a_file_system_is_here():
    import inspect

    wanted = {
        name
        for name, test in vars(theirs).items()
        if name.startswith("test_") and "fs" in inspect.signature(test).parameters
    }
    assert len(wanted) == 21
    assert wanted <= set(globals())
