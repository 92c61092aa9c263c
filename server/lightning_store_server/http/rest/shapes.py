"""The JSON objects of Agent Lightning's interfaces: what it sends, and what it reads.

A request with a member that is not declared here is taken without it, as Agent Lightning's own server takes it; a span
keeps every member.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from lightning_store import model
from lightning_store.model import (
    AttemptStatus,
    Duration,
    FilterLogic,
    RolloutMode,
    RolloutStatus,
    SortOrder,
    Time,
    WorkerStatus,
)

RowT = TypeVar("RowT")

# --- What both sides send --------------------------------------------------------------------------------------------


class RolloutConfig(BaseModel):
    timeout_seconds: Duration | None = None
    unresponsive_seconds: Duration | None = None
    max_attempts: Annotated[int, Field(ge=1, lt=2**31)] = 1
    retry_condition: list[AttemptStatus] = Field(default_factory=list)


class NewRollout(BaseModel):
    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class LLM(BaseModel):
    model_config = ConfigDict(extra="allow")

    resource_type: Literal["llm"] = "llm"
    endpoint: str
    model: str
    api_key: str | None = None
    sampling_parameters: dict[str, Any] = Field(default_factory=dict)


class ProxyLLM(LLM):
    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]


class PromptTemplate(BaseModel):
    model_config = ConfigDict(extra="allow")

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: model.TemplateEngine


NamedResources = dict[str, Annotated[LLM | ProxyLLM | PromptTemplate, Discriminator("resource_type")]]


class Span(BaseModel):
    """Its parts are checked when it is stored."""

    model_config = ConfigDict(extra="allow")

    rollout_id: str
    attempt_id: str
    sequence_id: int
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    status: dict[str, Any]
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    links: list[dict[str, Any]]
    start_time: float | None
    end_time: float | None
    context: dict[str, Any] | None
    parent: dict[str, Any] | None
    resource: dict[str, Any]


# --- Requests of 0.3 -------------------------------------------------------------------------------------------------


class EnqueueRequest(BaseModel):
    rollouts: list[NewRollout]


class DequeueRequest(BaseModel):
    limit: int = 1
    worker_id: str | None = None


class StartRolloutRequest(NewRollout):
    worker_id: str | None = None


class StartAttemptRequest(BaseModel):
    worker_id: str | None = None


class RolloutUpdate(BaseModel):
    """Only the members that are sent are set."""

    input: Any = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class AttemptUpdate(BaseModel):
    """Only the members that are sent are set."""

    status: AttemptStatus | None = None
    worker_id: str | None = None
    last_heartbeat_time: Time | None = None
    metadata: dict[str, Any] | None = None


class WorkerUpdate(BaseModel):
    heartbeat_stats: dict[str, Any] | None = None


class WaitRequest(BaseModel):
    rollout_ids: list[str]
    timeout: float | None = None


class SequenceIdRequest(BaseModel):
    rollout_id: str
    attempt_id: str


class Paging(BaseModel):
    """Which part of the rows, in which order."""

    limit: int = -1
    offset: int = 0
    sort_by: str | None = None
    sort_order: SortOrder = "asc"


class RolloutsQuery(Paging):
    status_in: list[RolloutStatus] | None = None
    rollout_id_in: list[str] | None = None
    rollout_id_contains: str | None = None
    filter_logic: FilterLogic = "and"


class AttemptsQuery(Paging):
    sort_by: str | None = "sequence_id"


class ResourcesQuery(Paging):
    resources_id: str | None = None
    resources_id_contains: str | None = None


class WorkersQuery(Paging):
    status_in: list[WorkerStatus] | None = None
    worker_id_contains: str | None = None
    filter_logic: FilterLogic = "and"


class SpansQuery(Paging):
    rollout_id: str
    attempt_id: str | None = None
    trace_id: str | None = None
    trace_id_contains: str | None = None
    span_id: str | None = None
    span_id_contains: str | None = None
    parent_id: str | None = None
    parent_id_contains: str | None = None
    name: str | None = None
    name_contains: str | None = None
    filter_logic: FilterLogic = "and"
    sort_by: str | None = "sequence_id"


# --- Requests of 0.2 -------------------------------------------------------------------------------------------------


class RolloutsQuery02(BaseModel):
    status: list[RolloutStatus] | None = None
    rollout_ids: list[str] | None = None


class SpansQuery02(BaseModel):
    rollout_id: str
    attempt_id: str | None = None


class SpansOfRolloutQuery02(BaseModel):
    attempt_id: str | None = None


class RolloutId02(BaseModel):
    rollout_id: str


class AddResources02(BaseModel):
    resources: NamedResources


class UpdateResources02(AddResources02):
    resources_id: str


class UpdateRollout02(RolloutUpdate):
    rollout_id: str


class UpdateAttempt02(AttemptUpdate):
    rollout_id: str
    attempt_id: str


# --- Requests of the legacy server -----------------------------------------------------------------------------------


class Task(BaseModel):
    rollout_id: str
    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    create_time: float | None = None
    last_claim_time: float | None = None
    num_claims: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Triplet(BaseModel):
    prompt: Any
    response: Any
    reward: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class LegacyRollout(BaseModel):
    """What a client of the legacy server reports."""

    rollout_id: str
    task: Task | None = None
    final_reward: float | None = None
    triplets: list[Triplet] | None = None
    trace: list[dict[str, Any]] | None = None
    """Spans as the SDK of OpenTelemetry writes them, by ``ReadableSpan.to_json``."""
    logs: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


# --- Replies ---------------------------------------------------------------------------------------------------------


class Health(BaseModel):
    status: Literal["ok"]


class Rollout(BaseModel):
    rollout_id: str
    input: Any
    start_time: float
    end_time: float | None
    mode: RolloutMode | None
    resources_id: str | None
    status: RolloutStatus
    config: RolloutConfig
    metadata: dict[str, Any] | None


class Attempt(BaseModel):
    rollout_id: str
    attempt_id: str
    sequence_id: int
    start_time: float
    end_time: float | None
    status: AttemptStatus
    worker_id: str | None
    last_heartbeat_time: float | None
    metadata: dict[str, Any] | None


class AttemptedRollout(Rollout):
    attempt: Attempt


class Worker(BaseModel):
    worker_id: str
    status: WorkerStatus
    heartbeat_stats: dict[str, Any] | None
    last_heartbeat_time: float | None
    last_dequeue_time: float | None
    last_busy_time: float | None
    last_idle_time: float | None
    current_rollout_id: str | None
    current_attempt_id: str | None


class Resources(BaseModel):
    resources_id: str
    create_time: float
    update_time: float
    version: int
    resources: NamedResources


class SequenceId(BaseModel):
    sequence_id: int


class Page(BaseModel, Generic[RowT]):
    items: list[RowT]
    limit: int
    offset: int
    total: int
    """How many rows match, whatever part of them this is."""


class TaskIfAny(BaseModel):
    is_available: bool
    task: Task | None = None


class Done(BaseModel):
    status: str
    message: str | None = None
    data: dict[str, Any] | None = None
