"""Imports gRPC so that it survives forks of this process.

Agent frameworks fork their runners. gRPC's synchronous API survives that if GRPC_ENABLE_FORK_SUPPORT is set while gRPC
is first imported; without it, most children of a parent with an open channel hang. The variable is set for this one
import only, so that the environment of this process and of those that it starts is as it was.
"""

from __future__ import annotations

import importlib
import os
from typing import Final

VARIABLE: Final = "GRPC_ENABLE_FORK_SUPPORT"

if VARIABLE not in os.environ:
    os.environ[VARIABLE] = "1"
    try:
        importlib.import_module("grpc")
    finally:
        del os.environ[VARIABLE]
