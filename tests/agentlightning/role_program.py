"""One program, started several times: ``AGL_CURRENT_ROLE`` says as what. The algorithm prints what came of it."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from lightning_store_agentlightning import GrpcExecutionStrategy, InProcessLightningStore
from tests.agentlightning.programs import trained

if __name__ == "__main__":
    outcomes = trained(InProcessLightningStore(), GrpcExecutionStrategy())
    if outcomes:
        print(json.dumps([[one["input"], one["status"], one["attempts"], one["reward"]] for one in outcomes]))
