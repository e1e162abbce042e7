"""A client under chaos that creates, overwrites, appends to, renames and removes files, and writes down what was acknowledged:
`python -m emberfs.tests.scenarios.chaos.names URL FOLDER SEED JOURNAL STOP TIMEOUT`."""

from __future__ import annotations

import sys

from ...plugin.emberfs_workers import acknowledge_operations

if __name__ == "__main__":
    url, folder, seed, journal, stop, timeout = sys.argv[1:]
    acknowledge_operations(url, folder, int(seed), journal, stop, float(timeout))
