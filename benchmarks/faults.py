"""Claim: killed (SIGKILL, 50 times) or cancelled (200 times) at random points, a host leaves nothing: no process after two seconds, no
descriptor, socket, temporary file or task. A host killed before its supervisor knows of its folder leaves it to the next run of anybody.

    python benchmarks/faults.py [--kills 50] [--cancels 200] [--driver process-unix ...] [--seed 0]

Exit status 1 when something was left.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time

from arlm.testing import faults


def kills(driver: str, count: int, chance: random.Random) -> bool:
    killed = [faults.kill_a_host(driver, chance) for _ in range(count)]
    seconds = [it.gone_after_s for it in killed if it.gone_after_s is not None]
    late = [it for it in killed if it.gone_after_s is None or it.gone_after_s > faults.SETTLE_SECONDS]
    running, orphaned = sum(it.processes for it in killed), [it for it in killed if it.orphaned]
    left = [it for it in killed if it.files]
    median, largest = 1000 * statistics.median(seconds or [0]), 1000 * max(seconds or [0])
    print(
        f"{driver}: killed {count} times with {running} processes running; gone after median {median:.0f} ms, largest {largest:.0f} ms; "
        f"{len(late)} left a process; {len(orphaned)} left a temporary folder to the next run, {len(left)} after that"
    )
    for it in late + left:
        print("  ", it)
    return not late and not left


async def cancels(driver: str, count: int, chance: random.Random) -> bool:
    bad, times = 0, []
    for number in range(count):
        began = time.perf_counter()
        left = await faults.cancel_a_driver(driver, chance)
        times.append(time.perf_counter() - began)
        if left:
            bad += 1
            print(f"  {driver}, cancel {number}: {sorted(left)}")
    median, largest = 1000 * statistics.median(times), 1000 * max(times)
    print(f"{driver}: cancelled {count} times; a round took median {median:.0f} ms, largest {largest:.0f} ms; {bad} left something")
    return not bad


def own_temporary_folder(stack: contextlib.ExitStack) -> None:
    """What others on the machine leave in the common one is not ours."""
    tempfile.tempdir = stack.enter_context(tempfile.TemporaryDirectory(prefix="af-"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cancels", type=int, default=200)
    parser.add_argument("--driver", action="append", choices=sorted(faults.DRIVERS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drivers = options.driver or ["process-unix"]
    chance = random.Random(options.seed)
    good = True
    with contextlib.ExitStack() as stack:
        own_temporary_folder(stack)
        for driver in drivers:
            good &= not options.kills or kills(driver, options.kills, chance)
            good &= not options.cancels or asyncio.run(cancels(driver, options.cancels, chance))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
