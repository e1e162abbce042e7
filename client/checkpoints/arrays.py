"""numpy arrays and torch tensors as bytes, and back, without a copy where there need be none. Each is imported when it is used."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from ...proto.errors import Status, error

ALIGNMENT = 64  # of a tensor in memory that we lay out, bytes

# The format's types -> numpy's names; those in the second table come from the package ml_dtypes, which registers them.
_NUMPY = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "I32": "int32",
    "U32": "uint32", "F32": "float32", "C64": "complex64", "I64": "int64", "U64": "uint64", "F64": "float64",
}  # fmt: skip
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E4M3FNUZ": "float8_e4m3fnuz",
}  # fmt: skip
_TORCH = {**_NUMPY, **_ML_DTYPES}  # torch calls them the same


def is_torch(value: Any) -> bool:
    """Whether it is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def describe(name: str, value: Any) -> tuple[str, tuple[int, ...]]:
    """The format's type and the shape of an array or tensor. Raises INVALID for what the format has no type for."""
    called = str(value.dtype).removeprefix("torch.") if is_torch(value) else _numpy_name(value)
    for dtype, theirs in _TORCH.items():
        if theirs == called:
            return dtype, tuple(value.shape)
    raise error(
        Status.INVALID, f"tensor {name!r} has type {called or type(value).__name__}, which the format does not have"
    )


def _numpy_name(value: Any) -> str:
    return str(getattr(getattr(value, "dtype", None), "name", ""))


def payload(value: Any) -> memoryview:
    """The bytes of an array or tensor, in C order and little endian: its own memory if it lies like that in the CPU's."""
    if is_torch(value):
        import torch

        flat = value.detach().cpu().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
    import numpy as np

    array = np.ascontiguousarray(value)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


class Memory:
    """One piece of memory that many tensors are laid out in."""

    def __init__(self, size: int, framework: str, pin: bool, into: Any) -> None:
        """`into`: a writable buffer of at least `size` bytes, else new memory; `pin`: page-locked, which torch does if there is an
        accelerator. Raises INVALID."""
        if framework not in ("numpy", "torch"):
            raise error(Status.INVALID, f"framework={framework!r}: numpy or torch")
        if pin and (framework != "torch" or into is not None):
            raise error(Status.INVALID, "pin is for new memory of torch")
        self._torch = framework == "torch"
        self._whole = self._given(into, size) if into is not None else self._new(size, pin)
        self.view = memoryview(self._whole.numpy() if self._torch else self._whole)

    def _new(self, size: int, pin: bool) -> Any:
        if self._torch:
            import torch

            return torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        import numpy as np

        return np.empty(size, np.uint8)

    def _given(self, into: Any, size: int) -> Any:
        view = memoryview(into.numpy() if is_torch(into) else into).cast("B")
        if view.readonly or len(view) < size:
            raise error(Status.INVALID, f"the buffer must be writable and hold {size} bytes; it has {len(view)}")
        if is_torch(into):
            import torch

            return into.reshape(-1).view(torch.uint8)  # keeps what torch knows: that it is pinned
        if self._torch:
            import torch

            return torch.frombuffer(view, dtype=torch.uint8)
        import numpy as np

        return np.frombuffer(view, np.uint8)

    def tensor(self, dtype: str, shape: tuple[int, ...], begin: int, length: int) -> Any:
        """The array or tensor of a format's type that lies there: a view, unless it lies where no such element may."""
        part = self._whole[begin : begin + length]
        if self._torch:
            import torch

            wanted = getattr(torch, _TORCH.get(dtype, dtype), None)
            if wanted is None:
                raise error(Status.UNSUPPORTED, f"this torch has no type {dtype}")
            return (part.clone() if part.data_ptr() % wanted.itemsize else part).view(wanted).reshape(shape)
        kind = _numpy_type(dtype)
        return (part.copy() if part.ctypes.data % kind.itemsize else part).view(kind).reshape(shape)


@cache
def _numpy_type(dtype: str) -> Any:
    import numpy as np

    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype]).newbyteorder("<")
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
    except (ImportError, AttributeError, KeyError) as missing:
        raise error(
            Status.UNSUPPORTED, f'numpy has no type {dtype}: install ml_dtypes, or load with framework="torch"'
        ) from missing
