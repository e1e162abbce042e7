"""Memory that an accelerator copies from by itself: what batches lie in is registered with CUDA, so nothing is copied to be pinned."""

from __future__ import annotations

from typing import Any

import numpy as np

ALREADY = 712  # cudaErrorHostMemoryAlreadyRegistered


def pin(view: Any) -> None:
    """Register this memory for as long as the process lives. Raises RuntimeError without torch, a CUDA device, or where it refuses."""
    try:
        import torch
    except ImportError:
        raise RuntimeError("pinned memory needs torch and a CUDA device: torch is not installed") from None
    if not torch.cuda.is_available():
        raise RuntimeError("pinned memory needs a CUDA device: torch sees none")
    memory = np.frombuffer(view, np.uint8)
    status = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if status not in (0, ALREADY):
        raise RuntimeError(f"CUDA does not pin {memory.nbytes} bytes: error {status}; see ulimit -l")
