"""The generated code is what proto/ says, and it is typed and importable as it stands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from lightning_store.v1 import span_pb2

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools" / "generate_proto.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_generated_code_is_current():
    result = subprocess.run([sys.executable, TOOL, "check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_codec_does_not_need_grpc():
    modules = ["codec", "requests", "queries", "spans", "enums", "times", "checks", "attributes", "span_contexts"]
    imports = "; ".join(f"import lightning_store.wire.{module}" for module in modules)
    check = f"import sys; {imports}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_otlp_messages_are_otlps_own():
    assert type(span_pb2.Span().span) is trace_pb2.Span
    assert type(span_pb2.Span().resource) is resource_pb2.Resource
    assert type(span_pb2.Span().scope) is common_pb2.InstrumentationScope
