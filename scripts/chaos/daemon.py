"""Plays seeds of a real daemon under operators, signals and kills. Exits with 1 at the first that breaks, with its steps and the log."""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.support.daemon_fuzz import Life


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many (%(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is disturbed (%(default)s)")
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        try:
            print(Life(seed, options.seconds).run(), flush=True)
        except AssertionError:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
