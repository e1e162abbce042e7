"""What people do with ember:// URLs: pandas, pyarrow data sets, duckdb, torch-style loaders."""

import pickle
import random
import uuid

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from emberfs_workers import read_slices_in_child


@pytest.fixture
def fs(cluster):
    return fsspec.filesystem("ember", **cluster.storage_options)


@pytest.fixture
def url(cluster, fs):
    path = f"/programs-{uuid.uuid4().hex}"
    fs.mkdir(path)
    yield f"ember://{cluster.authority}{path}"
    fs.rm(path, recursive=True)


@pytest.fixture
def frame():
    rng = np.random.default_rng(7)
    return pd.DataFrame({"id": np.arange(5000), "value": rng.random(5000), "name": [f"n{i % 97}" for i in range(5000)]})


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "feather", "pickle"])
def test_pandas_round_trip(cluster, url, frame, kind):
    options = cluster.url_options
    target = f"{url}/frame.{kind}"
    match kind:
        case "csv":
            frame.to_csv(target, index=False, storage_options=options)
            again = pd.read_csv(target, storage_options=options)
        case "parquet":
            frame.to_parquet(target, storage_options=options)
            again = pd.read_parquet(target, storage_options=options)
        case "json":
            frame.to_json(target, storage_options=options, double_precision=15)
            again = pd.read_json(target, storage_options=options)
        case "feather":
            frame.to_feather(target, storage_options=options)
            again = pd.read_feather(target, storage_options=options)
        case "pickle":
            frame.to_pickle(target, storage_options=options)
            again = pd.read_pickle(target, storage_options=options)
    pd.testing.assert_frame_equal(again, frame)


def test_compressed_text_and_seeking_in_it(cluster, url):
    with fsspec.open(f"{url}/lines.txt.gz", "wt", compression="infer", **cluster.url_options) as file:
        file.writelines(f"line {i}\n" for i in range(20000))
    with fsspec.open(f"{url}/lines.txt.gz", "rt", compression="infer", **cluster.url_options) as file:
        assert sum(1 for _ in file) == 20000


def test_pyarrow_partitioned_data_set(fs, url, frame):
    root = fs._strip_protocol(url) + "/set"
    pq.write_to_dataset(pa.Table.from_pandas(frame), root, partition_cols=["name"], filesystem=fs)
    data = ds.dataset(root, filesystem=fs, format="parquet", partitioning="hive")
    assert len(data.files) == 97
    table = data.to_table(filter=ds.field("name") == "n5", columns=["id", "value"])
    expected = frame[frame.name == "n5"]
    assert sorted(table["id"].to_pylist()) == expected.id.to_list()


def test_duckdb_queries_parquet_through_fsspec(fs, url, frame):
    duckdb = pytest.importorskip("duckdb")
    root = fs._strip_protocol(url)
    for part in range(4):
        frame.iloc[part::4].to_parquet(f"ember://{root}/part-{part}.parquet", filesystem=fs)
    connection = duckdb.connect()
    connection.register_filesystem(fs)
    rows = connection.execute(
        f"select name, count(*), sum(id) from read_parquet('ember://{root}/part-*.parquet') group by name order by name"
    ).fetchall()
    expected = frame.groupby("name").id.agg(["count", "sum"]).reset_index()
    assert rows == [tuple(row) for row in expected.itertuples(index=False)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_share_a_file_system(fs, url, method):
    """As a DataLoader does it: the data set holds the file system, workers inherit (fork) or unpickle (spawn) it."""
    import multiprocessing

    data = random.Random(3).randbytes(3_000_000)
    path = fs._strip_protocol(url) + "/samples.bin"
    fs.pipe_file(path, data)
    assert fs.cat_file(path, 5, 10) == data[5:10]  # the parent's connections are open before the fork
    slices = [(i * 40_000 + i, i * 40_000 + i + 1000) for i in range(64)]
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        results = pool.starmap(read_slices_in_child, [(fs, path, slices[i::4]) for i in range(4)])
    for i, result in enumerate(results):
        assert result == [data[a:b] for a, b in slices[i::4]]
    assert fs.cat_file(path, 0, 100) == data[:100]


def test_pickled_file_system_and_open_file(fs, url):
    path = fs._strip_protocol(url) + "/x"
    fs.pipe_file(path, b"0123456789")
    assert pickle.loads(pickle.dumps(fs)) == fs
    with fs.open(path, "rb") as file:
        file.seek(3)
        again = pickle.loads(pickle.dumps(file))
        assert again.read(4) == b"3456"
        again.close()
