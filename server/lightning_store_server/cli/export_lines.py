"""The file of an export: one JSON object a line, and what it stands for on the wire.

Payloads and spans are in their lines as the text that they are: what is imported is what was exported. docs/storage.md
has the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from lightning_store import json_text
from lightning_store.errors import InvalidArgumentError, StoreError
from lightning_store.model import Attempt, ResourcesUpdate, Rollout, Worker
from lightning_store.v1.resources_pb2 import Resources
from lightning_store.v1.rollout_pb2 import Admission
from lightning_store.v1.rollout_pb2 import Attempt as AttemptMessage
from lightning_store.v1.rollout_pb2 import Rollout as RolloutMessage
from lightning_store.v1.span_pb2 import NewSpan
from lightning_store.v1.transfer_pb2 import Checkpoint, StoredRollout
from lightning_store.v1.worker_pb2 import Worker as WorkerMessage
from lightning_store.wire import codec

FORMAT: Final = "lightning-store-export"
VERSION: Final = 2
"""Of the format. What an older version reads stays as it is; what it ignores may be added. 2 has what consumers have
consumed and the bounds of runs, without which samples would be trained on twice."""

ModelT = TypeVar("ModelT", bound=BaseModel)

Line: TypeAlias = StoredRollout | Resources | WorkerMessage | Checkpoint | Admission | dict[str, Any]
"""What a line stands for; the first and the last are the dictionaries that they are."""


# --- To lines --------------------------------------------------------------------------------------------------------


def head_line(exported_at: float, program: str) -> str:
    """The first line."""
    return json.dumps(
        {"type": "export", "format": FORMAT, "version": VERSION, "exported_at": exported_at, "program": program}
    )


def end_line(counts: Mapping[str, int]) -> str:
    """The last line: without it the file is cut off."""
    return json.dumps({"type": "end", **counts})


def rollout_line(part: StoredRollout) -> str:
    spans = (
        _object(sequence_id=str(span.sequence_id), document=_on_one_line(span.document_json)) for span in part.spans
    )
    return _object(
        type=json.dumps("rollout"),
        rollout=_rollout_text(part.rollout),
        attempts=_array(map(_attempt_text, part.attempts)),
        spans=_array(spans),
        spans_before=str(part.spans_before),
        last_sequence_id=str(part.last_sequence_id),
        queue_position=str(part.queue_position) if part.HasField("queue_position") else "null",
        spans_evicted=json.dumps(part.spans_evicted),
        fingerprint=json.dumps(part.fingerprint if part.HasField("fingerprint") else None),
        consumed=json.dumps({mark.consumer: mark.number for mark in part.consumed}),
    )


def checkpoint_line(one: Checkpoint) -> str:
    fields = {"consumer": one.consumer, "checkpoint": one.checkpoint, "number": one.number}
    return json.dumps({"type": "checkpoint", **fields})


def admission_line(one: Admission) -> str:
    bound = one.max_open_groups if one.HasField("max_open_groups") else None
    return json.dumps({"type": "admission", "run": one.run, "max_open_groups": bound, "paused": one.paused})


def resources_line(resources: ResourcesUpdate) -> str:
    message = codec.resources_to_proto(resources)
    named = {name: _on_one_line(text) for name, text in message.resources_json.items()}
    fields = {**_scalars(resources, "resources"), "resources": _object_of(named)}
    return _object(type=json.dumps("resources"), resources=_object_of(fields))


def worker_line(worker: Worker) -> str:
    message = codec.worker_to_proto(worker)
    fields = {**_scalars(worker, "heartbeat_stats"), "heartbeat_stats": _payload(message, "heartbeat_stats_json")}
    return _object(type=json.dumps("worker"), worker=_object_of(fields))


def _rollout_text(message: RolloutMessage) -> str:
    bare = RolloutMessage()
    bare.CopyFrom(message)
    bare.ClearField("input_json")
    bare.ClearField("metadata_json")
    scalars = _scalars(codec.rollout_from_proto(bare, "rollout"), "input", "metadata")
    payloads = {"input": _payload(message, "input_json"), "metadata": _payload(message, "metadata_json")}
    return _object_of({**scalars, **payloads})


def _attempt_text(message: AttemptMessage) -> str:
    bare = AttemptMessage()
    bare.CopyFrom(message)
    bare.ClearField("metadata_json")
    scalars = _scalars(codec.attempt_from_proto(bare, "attempt"), "metadata")
    return _object_of({**scalars, "metadata": _payload(message, "metadata_json")})


def _scalars(model: BaseModel, *payloads: str) -> dict[str, str]:
    """The JSON text of each field but the payloads."""
    return {name: json.dumps(value) for name, value in model.model_dump(exclude=set(payloads)).items()}


def _payload(message: Any, field: str) -> str:
    return _on_one_line(getattr(message, field)) if message.HasField(field) else "null"


def _on_one_line(text: str) -> str:
    """In JSON text a line ends between two values only, where a space says the same."""
    return text.replace("\n", " ").replace("\r", " ")


def _object_of(fields: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{json.dumps(name)}: {text}' for name, text in fields.items())}}}"


def _object(**fields: str) -> str:
    return _object_of(fields)


def _array(texts: Any) -> str:
    return f"[{', '.join(texts)}]"


# --- From lines ------------------------------------------------------------------------------------------------------


def read_line(text: str | bytes) -> Line:
    """What a line stands for.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"no JSON: {error}") from None
    kind = line.get("type") if isinstance(line, dict) else None
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        known = ", ".join(_READERS)
        raise InvalidArgumentError(f"its type is {kind!r}; it must be one of {known}")
    try:
        return read(line)
    except StoreError as error:
        raise InvalidArgumentError(str(error)) from None
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise InvalidArgumentError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"it is no {kind}: {error!r}") from None


def _head(line: dict[str, Any]) -> dict[str, Any]:
    if line.get("format") != FORMAT:
        raise InvalidArgumentError(f"its format is {line.get('format')!r}, not {FORMAT!r}")
    version = line.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InvalidArgumentError(f"the export has version {version}; this program knows versions up to {VERSION}")
    return line


def _model(model: type[ModelT], fields: Any) -> ModelT:
    """An object of the fields that this version knows."""
    known = (
        {name: fields[name] for name in model.model_fields if name in fields} if isinstance(fields, dict) else fields
    )
    return model.model_validate(known)


def _rollout(line: dict[str, Any]) -> StoredRollout:
    part = StoredRollout(
        rollout=codec.rollout_to_proto(_model(Rollout, line["rollout"])),
        attempts=[codec.attempt_to_proto(_model(Attempt, one)) for one in line.get("attempts", ())],
        spans_before=line.get("spans_before", 0),
        last_sequence_id=line.get("last_sequence_id", 0),
        queue_position=line.get("queue_position"),
        spans_evicted=line.get("spans_evicted", False),
        fingerprint=line.get("fingerprint"),
    )
    for span in line.get("spans", ()):
        document = json_text.dumps(span["document"], "document")
        part.spans.append(NewSpan(sequence_id=span["sequence_id"], document_json=document))
    for consumer, number in line.get("consumed", {}).items():
        part.consumed.add(consumer=consumer, number=number)
    return part


def _checkpoint(line: dict[str, Any]) -> Checkpoint:
    return Checkpoint(consumer=line["consumer"], checkpoint=line["checkpoint"], number=line["number"])


def _admission(line: dict[str, Any]) -> Admission:
    return Admission(run=line["run"], max_open_groups=line["max_open_groups"], paused=line["paused"])


_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Line]]] = {
    "export": _head,
    "checkpoint": _checkpoint,
    "admission": _admission,
    "resources": lambda line: codec.resources_to_proto(_model(ResourcesUpdate, line["resources"])),
    "rollout": _rollout,
    "worker": lambda line: codec.worker_to_proto(_model(Worker, line["worker"])),
    "end": lambda line: line,
}
