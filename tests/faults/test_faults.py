"""Killed or cancelled at random points, nothing stays behind. More rounds: ARLM_FAULT_ROUNDS=10, or benchmarks/faults.py."""

import os
import random

import pytest

from arlm.testing import faults

ROUNDS = float(os.environ.get("ARLM_FAULT_ROUNDS", "1"))
KILLS = max(1, round(2 * ROUNDS))  # of each driver
CANCELS = max(1, round(7 * ROUNDS))


@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("driver", faults.DRIVERS)
def test_a_host_killed_at_any_point_leaves_nothing(driver: str, seed: int) -> None:
    killed = faults.kill_a_host(driver, random.Random(f"{driver} {seed}"))
    assert killed.gone_after_s is not None, killed
    assert killed.files == (), killed


@pytest.mark.parametrize("driver", faults.DRIVERS)
async def test_a_driver_cancelled_at_any_point_leaves_nothing(driver: str) -> None:
    for seed in range(CANCELS):
        assert await faults.cancel_a_driver(driver, random.Random(f"{driver} {seed}")) == set(), seed
