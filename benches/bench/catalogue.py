"""All scenarios, by the run that they are of."""

from __future__ import annotations

import demo
import growth
import holding
import opening
import problem
import reading
import writing
from scenario import Scenario

SPEEDS = (
    *opening.SCENARIOS,
    *demo.SCENARIOS,
    *writing.SCENARIOS,
    *reading.SCENARIOS,
    *holding.SCENARIOS,
)
BENCH = (*problem.SCENARIOS, *SPEEDS)
GROWTH = growth.SCENARIOS
BY_NAME: dict[str, Scenario] = {scenario.name: scenario for scenario in (*BENCH, *GROWTH, *problem.PARTS)}
