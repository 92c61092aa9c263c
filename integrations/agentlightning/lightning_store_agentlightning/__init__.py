"""Agent Lightning on this store: ``Trainer(store=GrpcLightningStore("localhost:4747"), …)``.

* :class:`GrpcLightningStore`: the store behind a server, for every process of a training run.
* :class:`InProcessLightningStore`: the store in this process, in memory or in a database.
* :class:`GrpcExecutionStrategy`: the algorithm serves its store, runner processes are clients of it.
* :class:`CancellableLitAgentRunner`: a runner whose agent stops when its rollout is called off.
* :class:`AdaptedStore`: any ``lightning_store.LightningStore`` as an ``agentlightning.LightningStore``.
* :class:`FastTracerTraceToTriplet`, :class:`FastLlmProxyTraceToTriplet`: Agent Lightning's adapters in less time.

``docs/agent_lightning.md`` tells how to use them.
"""

from __future__ import annotations

try:
    import agentlightning as agentlightning
except ImportError as error:
    raise ImportError("this needs Agent Lightning: pip install agentlightning") from error

from lightning_store_agentlightning.adapter import AdaptedStore
from lightning_store_agentlightning.in_process import InProcessLightningStore
from lightning_store_agentlightning.legacy import LegacyServer
from lightning_store_agentlightning.remote import GrpcLightningStore
from lightning_store_agentlightning.runner import CalledOffError, CancellableLitAgentRunner
from lightning_store_agentlightning.strategy import GrpcExecutionStrategy
from lightning_store_agentlightning.triplets import FastLlmProxyTraceToTriplet, FastTracerTraceToTriplet

__all__ = [
    "AdaptedStore",
    "CalledOffError",
    "CancellableLitAgentRunner",
    "FastLlmProxyTraceToTriplet",
    "FastTracerTraceToTriplet",
    "GrpcExecutionStrategy",
    "GrpcLightningStore",
    "InProcessLightningStore",
    "LegacyServer",
]
