"""Plays seeds of the model of the queue on a server of its own. Exits with 1 at the first that breaks, with its trace."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import closing

from tests.support.queue_model.play import plan_of, play, shrink
from tests.support.servers import Server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="this one, with its trace")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (%(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (%(default)s)")
    parser.add_argument("--shrink", action="store_true", help="drop from its plan what isn't needed to break it")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    with Server() as server, closing(server.client()) as client:
        for seed in seeds:
            plan = plan_of(seed)
            try:
                trace = play(client, seed, plan)
            except Exception as error:  # noqa: BLE001 -- whatever broke it is shown
                if options.shrink:
                    print("needed to break it:", *shrink(client, seed), sep="\n")
                print(*error.__notes__, f"seed {seed}: {type(error).__name__}: {error}", sep="\n")
                return 1
            if options.seed is not None:
                print(*trace, sep="\n")
    print(f"{len(seeds)} seeds hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
