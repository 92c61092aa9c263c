"""Tables and the tree, as text of a given width."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from lightning_store import Attempt, AttemptedRollout, PaginatedResult, Rollout, RolloutConfig, Span
from lightning_store.model import Resource
from lightning_store_server.cli import tables
from lightning_store_server.rewards import nested

ROLLOUT_ID, ATTEMPT_ID = "ro-0123456789ab", "at-01234567"


def text_of(part: RenderableType, width: int = 200) -> list[str]:
    console = Console(width=width, markup=False, emoji=False, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(part)
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def attempted() -> AttemptedRollout:
    return AttemptedRollout(
        rollout_id=ROLLOUT_ID,
        input={"question": "[red]" + "x" * 500},
        start_time=1000.0,
        end_time=1003.5,
        status="succeeded",
        config=RolloutConfig(max_attempts=3),
        attempt=Attempt(
            rollout_id=ROLLOUT_ID, attempt_id=ATTEMPT_ID, sequence_id=2, start_time=1001.0, end_time=1003.5
        ),
    )


def span(number: int, parent: int | None, **fields: object) -> Span:
    return Span.model_validate(
        {
            "rollout_id": ROLLOUT_ID,
            "attempt_id": ATTEMPT_ID,
            "sequence_id": number,
            "trace_id": "0" * 32,
            "span_id": str(number),
            "parent_id": None if parent is None else str(parent),
            "name": f"s{number}",
            **fields,
        }
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_rollouts_keep_their_ids_at_any_usual_width(width: int) -> None:
    table = tables.rollouts_table([attempted()], now=1060.0, dates=width >= 120, rewards={ROLLOUT_ID: 0.51234567})
    lines = text_of(table, width)
    assert len(lines) == 2
    assert lines[1].startswith(ROLLOUT_ID)
    assert " 2.5s " in lines[1]  # without the time in the queue
    assert " 0.5123 " in lines[1]
    assert "succeeded" in lines[1]
    assert "2/3" in lines[1]
    assert "1m ago" in lines[1]
    assert '{"questio' in lines[1]


def test_input_is_cut_at_the_edge_and_not_taken_as_markup() -> None:
    line = text_of(tables.rollouts_table([attempted()], now=1060.0))[1]
    assert '{"question": "[red]xxx' in line
    assert line.endswith("x…")


def nested_ids(spans):
    return [(depth, one.sequence_id) for depth, one in nested(spans, lambda one: (one.span_id, one.parent_id))]


def test_spans_nest_under_their_parents() -> None:
    spans = [span(1, None), span(2, 1), span(3, 2), span(4, 1), span(5, 99)]
    assert nested_ids(spans) == [(0, 1), (1, 2), (2, 3), (1, 4), (0, 5)]


def test_spans_that_are_their_own_ancestors_are_shown_once() -> None:
    spans = [span(1, 2), span(2, 1), span(3, 3), span(4, None)]
    assert nested_ids(spans) == [(0, 4), (0, 1), (1, 2), (0, 3)]


def test_very_deep_spans_can_be_drawn() -> None:
    spans = [span(number, number - 1) for number in range(1, 3000)]
    attempt = attempted().attempt
    lines = text_of(tables.rollout_tree(attempted(), [attempt], spans, now=1060.0), width=80)
    assert sum("#" in line for line in lines) == len(spans)


def test_tree_says_that_spans_were_dropped() -> None:
    lines = text_of(tables.rollout_tree(attempted(), [attempted().attempt], None, now=1060.0))
    assert any("dropped to free memory" in line for line in lines)


def test_rewards_are_shown_in_short() -> None:
    one = span(1, None, attributes={"a.b.reward.0.value": 1.5, "Score": "x" * 99, "my.final_reward": 2, "model": "m"})
    assert dict(tables.rewards(one)) == {"reward.0.value": 1.5, "Score": "x" * 99, "final_reward": 2}
    [line] = text_of(tables.span_line(one))
    assert line == f"#1 s1 reward.0.value=1.5 Score={'x' * 39}… final_reward=2"


def test_secrets_of_resources_are_hidden() -> None:
    resource = Resource.model_validate({"resource_type": "x", "api_key": "sk-1", "max_tokens": 5, "nothing": None})
    assert dict(tables.shown_fields(resource, show_secrets=False)) == {"api_key": "********", "max_tokens": "5"}
    assert dict(tables.shown_fields(resource, show_secrets=True)) == {"api_key": "sk-1", "max_tokens": "5"}
    assert list(tables.shown_fields(Resource(resource_type="bare"), show_secrets=False)) == [("", "")]


@pytest.mark.parametrize(
    ("rows", "offset", "total", "note"),
    [
        (0, 0, 0, "0 rollouts"),
        (1, 0, 1, "1 rollout"),
        (2, 0, 2, "2 rollouts"),
        (2, 0, 5, "1 to 2 of 5 rollouts; the next with --offset 2"),
        (2, 3, 5, "4 to 5 of 5 rollouts"),
        (0, 9, 5, "none of 5 rollouts in this part"),
    ],
)
def test_note_below_a_page(rows: int, offset: int, total: int, note: str) -> None:
    page: PaginatedResult[Rollout] = PaginatedResult([attempted()] * rows, 2, offset, total)
    assert tables.page_note(page, "rollouts") == note
