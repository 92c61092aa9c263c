"""The description of the interfaces at ``/openapi.json``, made from the tables of operations and the shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_store_server.http.answers import JSON
from lightning_store_server.http.rest.errors import to_json
from lightning_store_server.http.rest.operations import ID_HEADER, Operation
from lightning_store_server.http.rest.tables import OPERATIONS
from lightning_store_server.otlp.endpoint import TRACES_PATH

PATH: Final = "/openapi.json"
_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_ERROR: Final = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {"description": "What is wrong: text, or a list of what pydantic found."},
        "error_type": {"type": "string"},
        "message": {"type": "string"},
    },
}


def openapi_route() -> Route:
    """Answers the description."""

    async def describe(_: Request) -> Response:
        return Response(to_json(description()), media_type=JSON)

    return Route(PATH, describe)


@cache
def description() -> dict[str, Any]:
    """An OpenAPI 3.1 document. Not to be changed."""
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for index, operation in enumerate(OPERATIONS):
        adapters.append((f"returns{index}", "serialization", TypeAdapter(operation.returns)))
        if operation.body is not None:
            adapters.append((f"body{index}", "validation", operation.body_adapter))
    schemas, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REF)
    named: dict[str, Any] = {key: schema for (key, _), schema in schemas.items()}
    paths: dict[str, Any] = {TRACES_PATH: {"post": _traces()}}
    for index, operation in enumerate(OPERATIONS):
        described = _described(operation, named[f"returns{index}"], named.get(f"body{index}"))
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "lightning-store-grpc: REST", "version": version("lightning-store-grpc")},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _described(operation: Operation, returns: Any, body: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "tags": [operation.version],
        "summary": operation.summary,
        "description": f"For the role {operation.role.value} and above.",
        "responses": {
            str(operation.status.value): {"description": "Done", **_content(returns)},
            "default": {"description": "Failed", **_content({"$ref": _REF.format(model="Error")})},
        },
    }
    parameters = [*_in_path(operation), *_in_query(operation)]
    if operation.remembers:
        about = "The request may be sent again with the same id, and happens once"
        parameters.append(_parameter(ID_HEADER, "header", {"type": "string"}, required=False, description=about))
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = {"required": not operation.body_optional, **_content(body)}
    return described


def _in_path(operation: Operation) -> Sequence[dict[str, Any]]:
    return [_parameter(name, "path", {"type": "string"}) for name in _PARAMETER.findall(operation.path)]


def _in_query(operation: Operation) -> Sequence[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema()
    required = schema.get("required", ())
    return [_parameter(name, "query", one, required=name in required) for name, one in schema["properties"].items()]


def _parameter(name: str, where: str, schema: Any, *, required: bool = True, **more: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema, **more}


def _content(schema: Any) -> dict[str, Any]:
    return {"content": {JSON: {"schema": schema}}}


def _operation_id(operation: Operation) -> str:
    parts = re.findall(r"\w+", operation.path)
    return "_".join([operation.version.replace(".", "_"), operation.method.lower(), *parts])


def _traces() -> dict[str, Any]:
    binary = {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "operationId": "export_traces",
        "tags": ["OTLP"],
        "summary": "Spans as OTLP, an ExportTraceServiceRequest as protobuf or JSON",
        "requestBody": {"required": True, "content": {**binary, **_content({"type": "object"})["content"]}},
        "responses": {"200": {"description": "An ExportTraceServiceResponse"}, "default": {"description": "Failed"}},
    }
