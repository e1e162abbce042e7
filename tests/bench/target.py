"""`python -m emberfs.tests.bench.target [--quick] [--mib N]`: the benchmark of one storage target, as JSON."""

from __future__ import annotations

import argparse
import json

from emberfs.deploy.bench.target import run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a small file and few rounds: rough figures")
    options.add_argument("--mib", type=int, default=0, help="size of the file (default 1024)")
    arguments = options.parse_args()
    print(json.dumps(run(quick=arguments.quick, mib=arguments.mib), indent=1))


if __name__ == "__main__":
    main()
