"""The whole contract, over wires on which calls are broken in many ways: the same assertions as on a sound one.

Thousands of tests, of which ``make test`` does not even read the names.
"""

from __future__ import annotations

import pytest

from lightning_store.testing import StoreContract
from lightning_store.testing.faults import Fault
from tests.chaos.flaky import ByChance, EveryNth

pytestmark = pytest.mark.chaos

DEVIATIONS = {
    "test_f32_the_estimator_sees_the_span": "a batch of spans that arrives again is measured again",
    **dict.fromkeys(
        (
            "test_x_who_came_first_is_served_first",
            "test_x_as_many_wake_as_were_queued",
            "test_x_one_rollout_wakes_nobody_else",
        ),
        "who waits for work and loses the connection comes back to the end of the line",
    ),
    **dict.fromkeys(
        (
            "test_x_when_the_time_is_up_there_is_nothing",
            "test_f31_on_timeout_those_that_are_finished_come_back",
        ),
        "a wait that is on its way again while the test moves its clock begins after that, and nobody moves it further",
    ),
    "test_x_who_stops_waiting_costs_no_claim": "between two attempts of a call nothing waits at the server",
}


class TestEverySecondReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 2


class TestEveryThirdReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3


class TestEverySeventhReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 7


class TestEveryThirdRequestLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3
    faults = (Fault.CUT_REQUEST,)


class TestEveryThirdCallLostOneWayOrAnother(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3
    faults = (Fault.CUT_REPLY, Fault.CUT_REQUEST, Fault.RESET)


class TestByChance1(ByChance, StoreContract):
    deviations = DEVIATIONS
    seed = 1


class TestByChance2(ByChance, StoreContract):
    deviations = DEVIATIONS
    seed = 2
