"""What `.ember/stats` says: a table of the operations, then one line for each other number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .filesystem import FileSystem

_HEAD = f"{'operation':<20}{'count':>12}{'errors':>10}{'mean_us':>12}{'max_us':>12}\n"


def text_of(fs: FileSystem, generation: int) -> bytes:
    """Now. All counts are since this daemon began, the `generation`th of the mount."""
    rows = [
        f"{name:<20}{count:>12}{errors:>10}{1e6 * seconds / count:>12.1f}{1e6 * longest:>12.0f}\n"
        for name, count, errors, seconds, longest in fs.statistics.rows()
    ]
    lines = [f"{name:<40}{value:>16}\n" for name, value in {**_numbers(fs), "daemon_generation": generation}.items()]
    return "".join((_HEAD, *rows, "\n", *lines)).encode()


def _numbers(fs: FileSystem) -> dict[str, int]:
    core, statistics = fs.core, fs.statistics
    inodes = list(core.inodes.values())
    return {
        "bytes_read": statistics.bytes_read,
        "bytes_written": statistics.bytes_written,
        "answered_inline": statistics.inline,
        "interrupted": statistics.interrupted,
        "abandoned": statistics.abandoned,
        "open_handles": len(fs.handles),
        "inodes_of_kernel": len(fs.nodes),
        "inodes_open": len(inodes),
        "inodes_dirty": sum(inode.unsettled for inode in inodes),
        "bytes_written_back_in_flight": core.write_budget.held,
        "buffer_bytes": core.options.memory,
        "files_read_ahead": len(core.cluster.lookahead),
        "invalidations_sent": fs.notifier.sent,
        "invalidations_refused": fs.notifier.refused,
    }
