"""What tells namespaces apart, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emberfs.kvcache import NamespaceSpec
from emberfs.kvcache.namespace import digest_of

SPEC = NamespaceSpec(
    engine="sglang",
    model="deepseek-ai/DeepSeek-V3",
    revision="a1b2",
    dtype="bfloat16",
    page_tokens=64,
    layout="page_first",
    layers=(0, 61),
    heads=(0, 1),
    object_bytes=4_497_408,
    salt="s",
    tenant="team",
)

OTHER = {
    "engine": "vllm",
    "model": "deepseek-ai/DeepSeek-R1",
    "revision": "a1b3",
    "dtype": "float16",
    "page_tokens": 16,
    "layout": "layer_first",
    "layers": (0, 30),
    "heads": (1, 2),
    "object_bytes": 4_497_409,
    "salt": "",
    "tenant": "other",
}


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_every_field_tells_namespaces_apart(name: str, value: Any) -> None:
    changed = replace(SPEC, **{name: value})
    assert changed.digest != SPEC.digest
    assert changed.name != SPEC.name


def test_the_descriptor_is_canonical() -> None:
    """It is on the disks of clusters: another form of it would lose what they hold."""
    assert SPEC.descriptor == (
        '{"dtype":"bfloat16","engine":"sglang","heads":[0,1],"layers":[0,61],"layout":"page_first",'
        '"model":"deepseek-ai/DeepSeek-V3","object_bytes":4497408,"page_tokens":64,"revision":"a1b2","salt":"s",'
        '"tenant":"team","version":1}'
    )
    assert SPEC.digest == digest_of(SPEC.descriptor)
    assert len(SPEC.digest) == 32


def test_a_spec_comes_back_from_its_descriptor() -> None:
    assert NamespaceSpec.of(SPEC.descriptor) == SPEC
    with pytest.raises(ValueError, match="version"):
        NamespaceSpec.of(SPEC.descriptor.replace('"version":1', '"version":2'))


@pytest.mark.parametrize(
    "bad",
    [
        {"engine": ""},
        {"model": ""},
        {"dtype": 3},
        {"page_tokens": 0},
        {"object_bytes": 0},
        {"object_bytes": 1 << 40},
        {"layers": (3, 3)},
        {"heads": [0, 1]},
        {"tenant": "a/b"},
        {"salt": "x" * 2000},
    ],
    ids=str,
)
def test_values_that_describe_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(SPEC, **bad)
