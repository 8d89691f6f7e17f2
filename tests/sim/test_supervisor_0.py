"""Lives of the supervisor, part 1 of 4: files are spread over processes. Any number of them: `scripts/chaos/supervisor --seeds N`."""

from __future__ import annotations

import pytest

from tests.support.sim_fleet import A_PART, PARTS, check


@pytest.mark.parametrize("part", range(0, PARTS, 4))
def test_supervisor(part: int) -> None:
    check(range(part * A_PART, (part + 1) * A_PART))
