"""The data that every store takes and returns: rollouts, attempts, spans, resources, workers.

All of it is plain data (pydantic v2). Times are seconds since the Unix epoch as ``float``; durations are
seconds. Objects that a store returns are snapshots: changing one changes nothing in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    Self,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

T = TypeVar("T")


class Unset(Enum):
    """The type of :data:`UNSET`. An enum, so that it stays one object through copies and pickles."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> Literal[False]:
        return False


UNSET: Final = Unset.UNSET
"""Default of every optional argument of the update methods: "leave this field alone", where ``None`` clears it."""

RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
WorkerStatus = Literal["idle", "busy", "unknown"]
RolloutMode = Literal["train", "val", "test"]
SpanStatusCode = Literal["UNSET", "OK", "ERROR"]
SpanKind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
TemplateEngine = Literal["jinja", "f-string", "poml"]
FilterLogic = Literal["and", "or"]
SortOrder = Literal["asc", "desc"]
ReturnWhen = Literal["all", "any"]

TIME_MAX_SECONDS: Final = 2**63 // 10**9
"""Latest time the store holds: 2262-04-11, the last second whose nanoseconds fit a signed 64-bit integer."""

Time = Annotated[float, Field(ge=0, le=TIME_MAX_SECONDS, allow_inf_nan=False)]
"""Seconds since the Unix epoch, from 1970 to 2262."""

Duration = Annotated[float, Field(ge=0, le=TIME_MAX_SECONDS, allow_inf_nan=False)]
"""A length of time in seconds."""

Counter = Annotated[int, Field(ge=0, lt=2**63)]
"""A count or sequence number; it fits a signed 64-bit integer."""


@dataclass(frozen=True, slots=True)
class OneError:
    """Annotates a union to report one error, instead of one for each choice with the choice in its path."""

    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called by pydantic."""
        error = {"custom_error_type": "name_or_number", "custom_error_message": self.message}
        return cast(CoreSchema, {**handler(source), **error})


SpanStatusNumber = Annotated[int, Field(strict=True, ge=3, lt=2**31)]
"""The number of a status code that has no name here, as newer versions of OTLP may have."""
SpanKindNumber = Annotated[int, Field(strict=True, ge=6, lt=2**31)]
"""The number of a span kind that has no name here, as newer versions of OTLP may have."""


class Model(BaseModel):
    """Base of the closed types: a field that does not exist is an error, not a silent loss."""

    model_config = ConfigDict(extra="forbid")


ModelT = TypeVar("ModelT", bound=BaseModel)


def construct(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """The object of ``fields``, all of the model's and known to be legal. It keeps the mapping.

    As ``model.model_construct(**fields)``, which takes several times as long to look for what might be missing.
    """
    made = object.__new__(model)
    set_attribute = object.__setattr__
    set_attribute(made, "__dict__", fields)
    set_attribute(made, "__pydantic_fields_set__", set(fields))
    set_attribute(made, "__pydantic_extra__", None)
    set_attribute(made, "__pydantic_private__", None)
    return made


class OpenModel(BaseModel):
    """Base of the open types: fields that are not declared here are kept and returned unchanged."""

    model_config = ConfigDict(extra="allow")


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


def explained(error: ValidationError, model: type[BaseModel] | None = None, title: str = "") -> ValidationError:
    """The same error in words that say what to give, and without links to pydantic's documentation.

    Args:
        error: What pydantic found.
        model: The model whose fields are meant, to name them where there is no such field.
        title: What is not legal, if pydantic's own name for it says nothing.
    """
    fields = "" if model is None else f"; there are {', '.join(model.model_fields)}"
    found: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        kind: Any = item["type"]
        message: Any = item["msg"]
        if kind == "extra_forbidden":
            message = f"is not a field{fields if len(item['loc']) == 1 else ''}"
        elif kind == "missing":
            message = "is missing"
        message = message.replace("Input should be", "must be", 1)
        own = PydanticCustomError(kind, message)
        found.append({"type": own, "loc": item["loc"], "input": item["input"]})
    return ValidationError.from_exception_data(title or error.title, found)


class Arguments(Model):
    """Base of the closed types that callers make by hand: what is not legal is told in words of their own."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise explained(error, cls) from None


PRIORITY_MAX: Final = 10_000
Priority = Annotated[int, Field(strict=True, ge=-PRIORITY_MAX, le=PRIORITY_MAX)]
GROUP_SIZE_MAX: Final = 10_000
GroupId = Annotated[str, Field(strict=True, min_length=1)]
GroupSize = Annotated[int, Field(strict=True, ge=1, le=GROUP_SIZE_MAX)]
RetryPosition = Literal["head", "tail"]
RetryBackoff = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
"""The highest priority of a rollout, and less nothing the lowest."""


POLICY_VERSIONS: Final = 2**62
"""Policy versions are below this."""
PolicyVersion = Annotated[int, Field(strict=True, ge=0, lt=POLICY_VERSIONS)]
Bind = Literal["enqueue", "claim"]
OnStale = Literal["cancel", "rebind"]


class RolloutConfig(Arguments):
    """How long an attempt may take, and when a failed one is tried again."""

    # A config given inside another object is checked again and copied: it may have been changed since it was made.
    model_config = ConfigDict(extra="forbid", revalidate_instances="always")

    timeout_seconds: Duration | None = None
    """An attempt that runs longer ends as ``timeout``. None: no limit."""
    unresponsive_seconds: Duration | None = None
    """An attempt silent for longer (no span, no heartbeat) ends as ``unresponsive``. None: no limit."""
    max_attempts: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """Attempts in all, the first included."""
    retry_condition: list[AttemptStatus] = Field(default_factory=list)
    """The attempt statuses that put the rollout back into the queue."""
    retry_position: RetryPosition = "tail"
    """Where in the queue a retry stands: before or after all others of its priority."""
    retry_delay_seconds: Duration = 0.0
    """How long a rollout waits before it is back in the queue for its first retry."""
    retry_backoff: RetryBackoff = 1.0
    """How many times as long it waits before each further retry."""
    bind: Bind = "enqueue"
    """"claim": each attempt gets the latest resources of the rollout's run at its claim. "enqueue": those with which
    the rollout was made."""
    max_staleness: Counter | None = None
    """How many policy versions the rollout may be behind the latest of its resources' run when it is claimed, and when
    it has succeeded. None: any number."""
    on_stale: OnStale = "cancel"
    """What becomes of a rollout that is further behind when it is claimed: it is cancelled, or gets the latest."""


DEFAULT_CONFIG: Final = RolloutConfig()
"""Of a rollout that is given none. It is never changed in place."""


def copy_of(config: RolloutConfig) -> RolloutConfig:
    """A config that shares nothing with this one, which is legal and so is not checked again."""
    fields = vars(config)
    return construct(RolloutConfig, {**fields, "retry_condition": [*fields["retry_condition"]]})


EndReason = Literal["error", "timeout", "worker_lost", "cancelled", "stale"]
"""Why a rollout did not succeed: its runner reported a failure, or nobody says what went wrong; it took too long; its
runner fell silent; it was called off; it was too far behind the policy. The last is that of a success too, if it came
too late."""


class Attempt(Model):
    """One execution of a rollout."""

    rollout_id: str
    attempt_id: str
    sequence_id: Counter
    """1 for the first attempt of its rollout, then 2, 3, …"""
    start_time: Time
    end_time: Time | None = None
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: Time | None = None
    """The last sign of life: a span, the worker's heartbeat, or a time given to ``update_attempt``."""
    metadata: dict[str, Any] | None = None
    counts: bool = True
    """Whether it is one of the ``max_attempts``."""
    resources_id: str | None = None
    """The resources of its rollout when it began. None, as all that follows, if there were none."""
    resources_version: Counter | None = None
    """Their version then."""
    policy_version: Counter | None = None
    """Their policy version then."""
    policy_version_min: Counter | None = None
    """The least policy version that it has used: ``policy_version``, or that of a span with the attribute
    ``lightning.policy_version``."""
    policy_version_max: Counter | None = None
    """The greatest, likewise."""


class Rollout(Model):
    """One task, from the queue to its outcome."""

    rollout_id: str
    input: Any
    """The task itself: any JSON value."""
    start_time: Time
    """When it was enqueued or started."""
    end_time: Time | None = None
    """When it last became succeeded, failed or cancelled; kept if it is put back into the queue."""
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None
    end_reason: EndReason | None = None
    """Of one that is failed or cancelled: why. Of one that succeeded too late: "stale"."""
    priority: int = 0
    """Higher ones are claimed first."""
    group_id: str | None = None
    """The group whose member it is."""
    group_size: int | None = None
    """How many members the group has; None: as many as there are."""


class AttemptedRollout(Rollout):
    """A rollout together with its latest attempt."""

    attempt: Attempt

    @model_validator(mode="after")
    def _ids_agree(self) -> AttemptedRollout:
        if self.attempt.rollout_id != self.rollout_id:
            raise ValueError(
                f"attempt.rollout_id {self.attempt.rollout_id!r} is not the rollout's id {self.rollout_id!r}"
            )
        return self


class EnqueueRolloutRequest(Arguments):
    """What is needed to make a rollout."""

    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    """None takes the latest resources at the time of the call."""
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None
    priority: Priority = 0
    """Higher ones are claimed first."""
    group_id: GroupId | None = None
    """The group whose member it is."""
    group_size: GroupSize | None = None
    """How many members the group has; None: as many as there are."""


class RolloutUpdate(Arguments):
    """The fields that one ``update_rollout`` sets: exactly those in ``model_fields_set``; the rest stay as they are."""

    input: Any = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None


class AttemptUpdate(Arguments):
    """The fields that one ``update_attempt`` sets: exactly those in ``model_fields_set``."""

    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: Time | None = None
    metadata: dict[str, Any] | None = None
    counts: Annotated[bool, Field(strict=True)] = True


def given(**fields: Any) -> dict[str, Any]:
    """The keyword arguments that are not UNSET, to build a :class:`RolloutUpdate` or :class:`AttemptUpdate` from."""
    return {name: value for name, value in fields.items() if value is not UNSET}


# --- Spans -----------------------------------------------------------------------------------------------------------

Attributes = dict[str, Any]
"""OpenTelemetry attributes: text keys; values are text, booleans, numbers, None, and lists or mappings of these."""


class SpanContext(OpenModel):
    """Identity of a span inside a trace."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_remote: bool
    trace_state: dict[str, str]


class TraceStatus(OpenModel):
    """Outcome of a span."""

    status_code: Annotated[
        SpanStatusCode | SpanStatusNumber, OneError("Input should be 'UNSET', 'OK', 'ERROR' or an integer from 3")
    ]
    description: str | None = None


class Event(OpenModel):
    """Something that happened at one moment within a span."""

    name: str
    attributes: Attributes = Field(default_factory=dict)
    timestamp: Time | None = None


class Link(OpenModel):
    """A reference from one span to another."""

    context: SpanContext
    attributes: Attributes | None = None


class OtelResource(OpenModel):
    """The OpenTelemetry resource (process, host, service) that produced a span."""

    attributes: Attributes = Field(default_factory=dict)
    schema_url: str = ""


class InstrumentationScope(OpenModel):
    """The instrumentation library that produced a span."""

    name: str = ""
    version: str | None = None
    schema_url: str | None = None
    attributes: Attributes | None = None


class Span(OpenModel):
    """One OpenTelemetry span of one attempt. Fields that are not declared here are kept, whatever JSON they hold."""

    rollout_id: str
    attempt_id: str
    sequence_id: Counter
    """Position among the spans of its rollout; see ``get_next_span_sequence_id``."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits. (rollout_id, attempt_id, span_id) is the key of a span."""
    parent_id: str | None = None
    name: str
    status: TraceStatus = Field(default_factory=lambda: TraceStatus(status_code="UNSET"))
    attributes: Attributes = Field(default_factory=dict)
    events: list[Event] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)
    start_time: Time | None = None
    end_time: Time | None = None
    context: SpanContext | None = None
    parent: SpanContext | None = None
    resource: OtelResource = Field(default_factory=OtelResource)
    kind: (
        Annotated[
            SpanKind | SpanKindNumber,
            OneError("Input should be 'INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER' or an integer from 6"),
        ]
        | None
    ) = None
    scope: InstrumentationScope | None = None

    @classmethod
    def from_opentelemetry(
        cls, readable_span: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int
    ) -> Span:
        """The span that an OpenTelemetry SDK recorded, with nothing left out."""
        from lightning_store.otel import span_from_opentelemetry  # the SDK is slow to import and few need it

        return span_from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id)


# --- Resources -------------------------------------------------------------------------------------------------------


class Resource(OpenModel):
    """A named thing that runners need. A ``resource_type`` that is not known keeps all its fields in this class."""

    resource_type: str

    @field_validator("resource_type")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("resource_type must not be empty")
        return value


class LLM(Resource):
    """An endpoint that speaks a chat-completion API."""

    resource_type: Literal["llm"] = "llm"
    endpoint: str
    model: str
    api_key: str | None = Field(default=None, repr=False)
    sampling_parameters: dict[str, Any] = Field(default_factory=dict)

    def get_base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """The endpoint; the ids matter only to :class:`ProxyLLM`."""
        return self.endpoint


class ProxyLLM(LLM):
    """An LLM behind a proxy that tells callers apart by the rollout and attempt in the URL."""

    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]

    def get_base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """The endpoint with ``/rollout/<id>/attempt/<id>`` in it, before a trailing ``/v1``.

        With neither id it is the plain endpoint; with only one of them, ValueError.
        """
        if rollout_id is None and attempt_id is None:
            return self.endpoint
        if rollout_id is None or attempt_id is None:
            raise ValueError("give both rollout_id and attempt_id, or neither")
        base = self.endpoint.removesuffix("/")
        root = base.removesuffix("/v1")
        version = base[len(root) :]
        return f"{root}/rollout/{rollout_id}/attempt/{attempt_id}{version}"


class PromptTemplate(Resource):
    """A prompt with places to fill in."""

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: TemplateEngine

    def format(self, **values: Any) -> str:
        """The template with ``values`` filled in.

        ``f-string`` is the syntax of ``str.format``; ``jinja`` needs the package jinja2 and renders in its sandbox.
        Neither reaches attributes that begin with an underscore, nor renders to more than 16 Mi characters. ``poml``
        raises NotImplementedError: give ``template`` to the POML library.

        Raises:
            ValueError: The template is not legal, asks for such an attribute, or makes such a text.
            KeyError: A value of an f-string is not given.
            ImportError: jinja2 is not installed.
        """
        from lightning_store import templates  # few processes render, and the model is imported by all

        if self.engine == "f-string":
            return templates.render_f_string(self.template, values)
        if self.engine == "jinja":
            return templates.render_jinja(self.template, values)
        raise NotImplementedError("a poml template is rendered by the POML library: give it PromptTemplate.template")


KNOWN_RESOURCES: Final[Mapping[str, type[Resource]]] = {
    "llm": LLM,
    "proxy_llm": ProxyLLM,
    "prompt_template": PromptTemplate,
}


def _parse_resource(value: Any) -> Any:
    """Pick the class by ``resource_type``; objects that are resources already pass as they are."""
    if isinstance(value, Mapping):
        kind = value.get("resource_type")
        known = KNOWN_RESOURCES.get(kind, Resource) if isinstance(kind, str) else Resource
        return known.model_validate(dict(value))
    return value


NamedResources = dict[str, Annotated[SerializeAsAny[Resource], BeforeValidator(_parse_resource)]]
"""Resources by name."""


class ResourcesUpdate(Model):
    """One version of a set of resources."""

    resources_id: str
    resources: NamedResources
    create_time: Time
    update_time: Time
    version: Counter
    """1 when added, one more with each update of the same id."""
    policy_version: Counter = 0
    """Which policy this is, in its run: greater than all before."""
    run: str | None = None
    """The run to which they belong: that of rollouts with this ``lightning.run`` in their metadata. None: to any."""


# --- Workers ---------------------------------------------------------------------------------------------------------


class Worker(Model):
    """A runner process, as far as the store knows."""

    worker_id: str
    status: WorkerStatus = "unknown"
    heartbeat_stats: dict[str, Any] | None = None
    last_heartbeat_time: Time | None = None
    last_dequeue_time: Time | None = None
    last_busy_time: Time | None = None
    last_idle_time: Time | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None


# --- Completions -----------------------------------------------------------------------------------------------------


GroupStatus = Literal["open", "whole", "partial", "failed"]
"""Where a group stands: it may become whole; all its members have succeeded; enough of them have, and that is all; it
cannot have enough any more."""
OnPartial = Literal["keep", "cancel"]
"""What becomes of the members that are not done when a group is returned without them."""


class GroupTerms(TypedDict, total=False):
    """Which groups to return, and what it takes for that."""

    run: str | None
    """Only groups whose members have this ``lightning.run`` in their metadata; None is all."""
    consumer: str | None
    """No group that this consumer has consumed; None is all."""
    min_done: int | None
    """How many members have to succeed, if there are as many; None: all."""
    deadline: float | None
    """How long after its first claim a group is returned though members go on, in seconds; None: not at all."""
    timeout: float | None
    """How long to follow the groups, in seconds: the feed ends then, after one look at least. None: it does not."""
    on_partial: OnPartial
    """"cancel": members that have not ended when their group is returned are cancelled, in the transaction that finds
    it so. "keep", the default: they go on."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rollouts that are consumed together, as ``watch_groups`` returns them."""

    group_id: str
    size: int
    """How many members it has once all are queued."""
    status: GroupStatus
    rollouts: Sequence[Rollout]
    """Its members in the order in which they were queued, as they are when the group is returned; each that has
    attempts is an AttemptedRollout with its latest."""

    @property
    def succeeded(self) -> list[Rollout]:
        """The members that have succeeded."""
        return [one for one in self.rollouts if one.status == "succeeded"]

    @property
    def rollout_ids(self) -> list[str]:
        """The ids of all members."""
        return [one.rollout_id for one in self.rollouts]


@dataclass(frozen=True, slots=True)
class Admission:
    """How far runners may go ahead with the groups of a run."""

    run: str
    max_open_groups: int | None = None
    """Groups that have begun and are not consumed, at the most; None: any number."""
    paused: bool = False
    """Whether no group begins."""


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """How far the groups of a run have gone, as ``get_admission`` tells it."""

    admission: Admission
    """What bounds them."""
    open_groups: int
    """How many have begun, are not consumed by any consumer, and have a member that has succeeded or still can."""
    waiting_groups: int
    """How many have not begun."""
    open_group_ids: Sequence[str] = ()
    """Of the open ones, in their order: the first thousand."""


@dataclass(frozen=True, slots=True)
class CompletedRollout:
    """A rollout that became terminal, as ``watch_rollouts`` tells of it."""

    rollout: Rollout
    """As it is when it is told."""
    cursor: str
    """Where to go on after this one. Opaque, and of one store only."""


# --- Filters ---------------------------------------------------------------------------------------------------------


class RolloutFilters(TypedDict, total=False):
    """Filters that several methods take: each one given narrows the rollouts."""

    mode_in: Sequence[RolloutMode | None] | None
    """Only those with one of these modes; None is those without one."""
    resources_id_in: Sequence[str] | None
    """Only those with one of these resources."""
    worker_id_in: Sequence[str] | None
    """Only those whose latest attempt one of these workers has."""
    metadata_equals: Mapping[str, Any] | None
    """Only those whose metadata has all of these members. Keys that begin with ``lightning.`` have an index."""
    start_time_min: float | None
    """Only those that were made at this time or later, in seconds since the epoch."""
    start_time_max: float | None
    """Only those that were made before this time."""
    end_reason_in: Sequence[EndReason] | None
    """Only those that have ended for one of these reasons."""
    policy_version_min: int | None
    """Only those whose latest attempt began with this policy version or a later one."""
    policy_version_max: int | None
    """Only those whose latest attempt began with this policy version or an earlier one."""
    group_id_in: Sequence[str] | None
    """Only members of these groups."""


class WatchFilters(RolloutFilters, total=False):
    """Those of ``watch_rollouts``."""

    consumer: str | None
    """No rollout that this consumer has consumed; None is all."""


# --- Query results ---------------------------------------------------------------------------------------------------


class LazyRows(Sequence[T]):
    """Rows that are made when they are looked at, each once. Copies and pickles are lists of all of them.

    Args:
        sources: What each row is made of.
        make: Makes a row. What it raises is raised at each look.
    """

    __slots__ = ("_made", "_make", "_sources")

    def __init__(self, sources: Sequence[Any], make: Callable[[Any], T]) -> None:
        self._sources = sources
        self._make = make
        self._made: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        place = range(len(self._sources))[index]
        return self._row(place) if isinstance(place, int) else [self._row(one) for one in place]

    def __iter__(self) -> Iterator[T]:
        return map(self._row, range(len(self._sources)))

    def each(self) -> Iterator[T]:
        """The rows one after another, none of which is kept."""
        return map(self._make, self._sources)

    def _row(self, place: int) -> T:
        row = self._made.get(place)
        if row is None:
            row = self._made.setdefault(place, self._make(self._sources[place]))  # threads agree on the first
        return row

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | LazyRows) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as that of a list

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@dataclass(frozen=True, slots=True)
class PaginatedResult(Sequence[T], Generic[T]):
    """The rows of one query, as a sequence, with what was asked and how many rows there are."""

    items: Sequence[T]
    limit: int
    offset: int
    total: int
    """Rows that match, before limit and offset."""

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)
