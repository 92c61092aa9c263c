"""The generated code runs with the oldest releases that are allowed, and its parts are what they should be. (That it is
what proto/ says is for `make verify-proto`.)"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lightning_store.v1 import service_pb2_grpc

ROOT = Path(__file__).parent.parent.parent
GENERATED = ROOT / "src" / "lightning_store" / "v1"
PROTO_ROOT = ROOT / "proto"
PROTOS = sorted(PROTO_ROOT.rglob("*.proto"))


def lower_bound(name: str) -> Version:
    """The oldest release of a dependency that the package allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [requirement] = [one for one in map(Requirement, project["dependencies"]) if one.name == name]
    [bound] = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return bound


@pytest.mark.parametrize("path", sorted(GENERATED.glob("*_pb2.py")), ids=lambda path: path.stem)
def test_messages_are_not_generated_for_a_newer_protobuf_than_the_oldest_allowed(path):
    stamp = re.search(r"^# Protobuf Python Version: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert stamp is not None
    assert Version(stamp[1]) <= lower_bound("protobuf")


def test_the_service_is_not_generated_for_a_newer_grpcio_than_the_oldest_allowed():
    assert Version(service_pb2_grpc.GRPC_GENERATED_VERSION) <= lower_bound("grpcio")


def test_the_codec_does_not_need_grpc():
    modules = ["codec", "requests", "queries", "spans", "enums", "times", "checks"]
    imports = "; ".join(f"import lightning_store.wire.{module}" for module in modules)
    check = f"import sys; {imports}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_protos_import_nothing_but_each_other_and_well_known_types():
    for path in PROTOS:
        text = path.read_text()
        for imported in re.findall(r'^import "(.*)";', text, re.MULTILINE):
            assert imported.startswith("google/protobuf/") or (PROTO_ROOT / imported).is_file(), path.name
        assert 'option go_package = "lightning-store-grpc/go/lightning_store/v1;lightningstorev1";' in text
