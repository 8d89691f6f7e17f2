"""Plays seeds of the model of the executor's slots. Exits with 1 at the first that breaks, with its trace."""

from __future__ import annotations

import argparse
import logging
import sys

from tests.support.slot_model import BrokenError, play
from tests.support.virtual_time import Stalled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="this one, with its trace")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (%(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (%(default)s)")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    for seed in seeds:
        try:
            model = play(seed)
        except (BrokenError, Stalled) as error:
            print(f"seed {seed}: {type(error).__name__}: {error}", *error.__notes__, sep="\n")
            return 1
        if options.seed is not None:
            print(*model.trace, sep="\n")
    print(f"{len(seeds)} seeds hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
