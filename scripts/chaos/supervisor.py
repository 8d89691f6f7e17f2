"""Plays seeds of the supervisor on a simulated kernel. Exits with 1 at the first that breaks, with the steps it takes and its trace."""

from __future__ import annotations

import argparse
import sys

from tests.support.sim_fleet import play, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="this one, with its trace")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (%(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (%(default)s)")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    for seed in seeds:
        failed = report(seed)
        if failed is not None:
            print(failed)
            return 1
        if options.seed is not None:
            print(*play(seed).lines, sep="\n")
    print(f"{len(seeds)} seeds hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
