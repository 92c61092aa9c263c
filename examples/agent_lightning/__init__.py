"""The word problem agent of ``examples.svamp_demo`` as an Agent Lightning program, trained through a lightning store.

Agent, algorithm, tracer, adapter and Trainer are Agent Lightning's; the store is ours, and swapping it is one line:

    agent      a LitAgent: draws answers with the weights in its resources, leaves a span for each, emits rewards
    algorithm  an Algorithm: publishes resources, enqueues problems, waits, turns spans into triplets, takes a step

Run it from the project's root with ``make demo-agentlightning``, or with ``python -m examples.agent_lightning`` in an
environment that has Agent Lightning (``--help`` shows the flags).

Modules, each using only those above it: ``messages`` (resources), ``agent``, ``algorithm``, ``stores`` (which store,
and how processes share it), ``training`` (one run), ``comparison`` (the same run on several stores), ``demo``.
"""

from __future__ import annotations

import os

# Agent Lightning imports litellm, which else fetches a list of prices, and prints what it does.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_LOG", "ERROR")
