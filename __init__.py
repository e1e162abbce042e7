"""emberfs: a distributed parallel file system for AI training and inference.

The public face is small and loads nothing until it is used: `emberfs.connect(url)` gives a blocking client,
`emberfs.client.aio.connect(url)` its asyncio twin, and `ember://` URLs work in everything that speaks fsspec.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]

if TYPE_CHECKING:
    from .client.blocking import connect


def __getattr__(name: str) -> Any:
    # Imported on first use: pytest imports this file a second time under the clone's name, and `import emberfs` must stay
    # below 100 ms; either way nothing else may be loaded from here.
    if name == "connect":
        from .client.blocking import connect

        return connect
    raise AttributeError(f"module 'emberfs' has no attribute {name!r}")
