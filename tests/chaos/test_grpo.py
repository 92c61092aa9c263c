"""The loop of ``make demo-grpo``: its trainer and its server are killed, and no sample is trained on twice or lost."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the demo extra")

from examples.grpo.demo import main
from examples.grpo.policy import ANSWERS, LEARNING_RATE, gradient, probabilities, untrained
from examples.grpo.report import GroupRecord, Report, SampleRecord, StepRecord, write_plot


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_what_is_killed_trains_on_each_sample_once(tmp_path: Path) -> None:
    assert main(["--steps", "16", "--kills", "4", "--kill-server", "--output", str(tmp_path)]) == 0


def test_the_stub_learns_what_is_better_than_the_rest_of_its_group() -> None:
    logits = untrained()
    logits[3] += LEARNING_RATE * gradient(logits, 3, [(5, 1.0), (5, 1.0), (1, 0.0), (2, 0.0)])
    likely = probabilities(logits, 3)
    assert likely.argmax() == 5
    assert likely[1] == likely[2] < 1 / ANSWERS
    assert not gradient(untrained(), 3, [(5, 1.0), (1, 1.0)]).any()


def test_a_log_that_was_cut_off_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    report = Report(tmp_path)
    group = GroupRecord(group_id="g", status="whole")
    for step, reward in ((1, 0.0), (2, 0.5), (2, 1.0)):
        sample = SampleRecord(policy_version=step, staleness=0, reward=reward)
        report.add(StepRecord(step=step, samples=[sample], groups=[group], stale=0))
    with (tmp_path / "steps.jsonl").open("a") as log:
        log.write('{"step": 3')
    assert [(record.step, record.samples[0].reward) for record in report.steps()] == [(1, 0.0), (2, 1.0)]
    write_plot(tmp_path / "plot.png", report.steps())
    assert (tmp_path / "plot.png").stat().st_size > 1000
