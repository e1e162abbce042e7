"""python -m emberfs.tests.rdma COMMAND...: run a command in a machine with RoCE devices (`vm.py`), and end as it ended."""

from __future__ import annotations

import sys

from . import vm
from .kernel import Unavailable

SECONDS_MAX = 3600.0
SHOWN = ["bash", "-c", "rdma link; python -c 'import pyverbs.device as d; print(*d.get_device_list(), sep=chr(10))'"]


def main() -> int:
    try:
        outcome = vm.run(sys.argv[1:] or SHOWN, seconds=SECONDS_MAX, show=lambda text: print(text, end="", flush=True))
    except Unavailable as reason:
        print(f"no VM with RoCE devices: {reason}", file=sys.stderr)
        return 1
    if outcome.status == 125:
        print(outcome.console, file=sys.stderr)
    print(f"{outcome.ready_seconds:.1f} s to boot, {outcome.seconds:.1f} s in all", file=sys.stderr)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
