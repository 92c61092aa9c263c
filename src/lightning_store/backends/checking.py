"""What has to be true of stored data, as rules in SQL: what the checks of both databases have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from lightning_store.backends.base import Violation
from lightning_store.backends.records import POSITIONS_PER_BAND

LISTED_MAX: Final = 10
"""Violations of one kind that are told; the others are counted."""
QUEUE_KEY: Final = f"r.queue_band * {POSITIONS_PER_BAND} + r.queue_position"
"""Where rollout ``r`` stands in the queue."""


class Rule(NamedTuple):
    """Something that the store relies on."""

    text: str
    query: str
    """Selects what violates it, in one column."""


def in_sql(statuses: Collection[str]) -> str:
    """Statuses as the list of an IN."""
    return ", ".join(f"'{one}'" for one in sorted(statuses))


def told(rule: Rule, rows: Iterable[Sequence[Any]]) -> Iterator[Violation]:
    """The violations of a rule.

    Args:
        rule: The rule.
        rows: What its query has selected.
    """
    more = 0
    for number, (found,) in enumerate(rows):
        if number < LISTED_MAX:
            yield Violation(rule.text, str(found))
        else:
            more += 1
    if more:
        yield Violation(rule.text, f"and {more} more")


CONSUMERS_ARE_COUNTED: Final = Rule(
    "a rollout knows how many consumers have consumed it",
    """
    SELECT r.rollout_id FROM rollouts r
    WHERE r.consumers <> (SELECT count(*) FROM consumed k WHERE k.rollout = r.number)
    """,
)
UNCOUNTED_ATTEMPTS_ARE_COUNTED: Final = Rule(
    "a rollout knows how many of its attempts do not count",
    """
    SELECT r.rollout_id FROM rollouts r WHERE r.uncounted_attempts <> (
        SELECT count(*) FROM attempts a WHERE a.rollout = r.number AND NOT a.counts
    )
    """,
)
SPAN_COUNTERS_LEAD: Final = Rule(
    "a rollout's span counter is not below the number of a span",
    """
    SELECT r.rollout_id FROM rollouts r
    WHERE r.last_sequence < (SELECT max(s.sequence_id) FROM spans s WHERE s.rollout = r.number)
    """,
)
