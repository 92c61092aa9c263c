"""The attributes of spans that mean something to the store: those that identify the owner of a span, in OTLP and for
span processors, and the policy version that it used."""

from __future__ import annotations

from typing import Final

ROLLOUT_ID: Final = "agentlightning.rollout_id"
ATTEMPT_ID: Final = "agentlightning.attempt_id"
SEQUENCE_ID: Final = "agentlightning.span_sequence_id"
LABELS: Final = frozenset({ROLLOUT_ID, ATTEMPT_ID, SEQUENCE_ID})
POLICY_VERSION: Final = "lightning.policy_version"
"""A whole number, or a list of several."""
