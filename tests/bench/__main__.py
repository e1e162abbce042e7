"""`python -m emberfs.tests.bench [--quick] [NAME...]`: the benchmarks of `emberfs bench`, kept as JSON in bench-results/."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time
from pathlib import Path

NAMES = ("net", "target", "meta", "fs", "memory", "resync")
RESULTS = Path(__file__).resolve().parents[2] / "bench-results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    options.add_argument("--quick", action="store_true", help="a few seconds each, rough figures")
    given = options.parse_args()
    for name in given.names or NAMES:
        result = importlib.import_module(f"emberfs.deploy.bench.{name}").run(quick=given.quick)
        text = json.dumps({"bench": name, "machine": platform.uname()._asdict(), **result}, indent=1)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
