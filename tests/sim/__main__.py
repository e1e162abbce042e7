"""Soak the simulator: `python -m emberfs.tests.sim --minutes 60 --jobs 2`.

Runs fresh seeds until the time is over, prints every seed that fails, and ends with 1 if one did. `--seed` runs one seed and shows its
story; `--plant NAME` with a planted fault, until a seed finds it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from .planted import PLANTS
from .soak import STORIES, Outcome, end_with, fresh_seed, run_one
from .told import FOLDER, play

REPORT_SECONDS = 30.0


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m emberfs.tests.sim", description="Soak the simulator.")
    made.add_argument("--story", choices=sorted(STORIES), default="chains")
    made.add_argument("--seed", type=int, help="run this one alone and show what happened")
    made.add_argument("--first", type=int, help="begin with this seed (default: a random one)")
    made.add_argument("--seeds", type=int, default=0, help="as many (default: as many as there is time for)")
    made.add_argument("--minutes", type=float, default=2.0)
    made.add_argument("--jobs", type=int, default=1, help="processes")
    made.add_argument("--rewrite", action="store_true", help="record the scenarios in tests/sim/told anew")
    made.add_argument("--plant", choices=sorted(PLANTS), default="", help="run with this fault until a seed finds it")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = options().parse_args(arguments)
    if wanted.rewrite:
        for file in sorted(FOLDER.glob("*.txt")):
            file.write_text(play(file.read_text()))
        return 0
    if wanted.seed is not None:
        outcome = run_one(wanted.story, wanted.seed, wanted.plant)
        print(outcome.story or "it holds")
        return bool(outcome.failure)
    first = fresh_seed() if wanted.first is None else wanted.first
    began = reported = time.monotonic()
    runs = failures = 0
    for outcome in _outcomes(wanted, first, began + wanted.minutes * 60):
        runs += 1
        if outcome.failure:
            failures += 1
            print(f"seed {outcome.seed}: {outcome.failure[:300]}", flush=True)
            if wanted.plant:
                break
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{runs} runs, {failures} failed, {reported - began:.0f} s", flush=True)
    seconds = time.monotonic() - began
    print(f"{runs} runs of '{wanted.story}' from seed {first} on, {failures} failed, {seconds:.0f} s")
    return bool(failures) != bool(wanted.plant)  # a planted fault has to be found


def _outcomes(wanted: argparse.Namespace, first: int, until: float) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(wanted.jobs, context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        waiting: set[Future[Outcome]] = set()
        number = 0
        try:
            while True:
                while len(waiting) < 2 * wanted.jobs and time.monotonic() < until:
                    if wanted.seeds and number >= wanted.seeds:
                        break
                    waiting.add(pool.submit(run_one, wanted.story, first + number, wanted.plant))
                    number += 1
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
