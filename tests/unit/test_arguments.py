"""Resources are checked when they are published, whatever was done to them since they were made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from lightning_store import LLM, InMemoryLightningStore, PromptTemplate, ProxyLLM, RolloutConfig
from lightning_store.arguments import named_resources, without_password
from lightning_store.model import Resource


class Adapter(Resource):
    """A resource of somebody else's making."""

    resource_type: str = "adapter"
    rank: int
    layers: list[str]


def llm_without_model() -> Resource:
    llm = LLM(endpoint="http://localhost", model="tiny")
    llm.model = None  # type: ignore[assignment]
    return llm


def llm_without_type() -> Resource:
    llm = LLM(endpoint="http://localhost", model="tiny")
    llm.resource_type = ""  # type: ignore[assignment]
    return llm


def template_of_no_engine() -> Resource:
    return PromptTemplate.model_construct(template="{x}", engine="mustache")


def template_without_text() -> Resource:
    template = PromptTemplate(template="{x}", engine="f-string")
    del template.template
    return template


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda store: store.enqueue_rollout("t", mode="training"), "must be 'train', 'val' or 'test'"),
        (lambda store: store.enqueue_rollout("t", config={"max_attempts": 0}), "must be greater than or equal to 1"),
        (lambda store: store.update_rollout("ro-1", status="done"), "must be 'queuing', 'preparing', 'running'"),
        (lambda store: store.update_attempt("ro-1", "latest", status="done"), "must be 'preparing', 'running'"),
        (lambda store: store.add_resources({"llm": {"resource_type": "llm"}}), "llm.endpoint\n  is missing"),
        (lambda store: RolloutConfig(max_attempts=0), "max_attempts\n  must be greater than or equal to 1"),
        (lambda store: RolloutConfig(max_atempts=3), "max_atempts\n  is not a field; there are timeout_seconds, "),
        (lambda store: RolloutConfig(retry_condition=["x{y}"]), "retry_condition.0\n  must be 'preparing', "),
    ],
)
async def test_what_is_not_legal_is_told_in_words_of_our_own(give, says):
    with pytest.raises(ValidationError) as caught:
        await give(InMemoryLightningStore())
    assert says in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "Input should" not in str(caught.value)


SPOILED = [llm_without_model, llm_without_type, template_of_no_engine, template_without_text]


@pytest.mark.asyncio
@pytest.mark.parametrize("make", SPOILED)
async def test_a_resource_spoiled_by_hand_is_refused_and_nothing_is_stored(make: Callable[[], Resource]):
    store = InMemoryLightningStore()
    good = LLM(endpoint="http://localhost", model="tiny")
    first = await store.add_resources({"good": good})
    with pytest.raises(ValidationError):
        await store.add_resources({"good": good, "spoiled": make()})
    with pytest.raises(ValidationError):
        await store.update_resources(first.resources_id, {"spoiled": make()})
    assert list(await store.query_resources()) == [first]


def test_a_change_by_hand_that_is_legal_counts():
    llm = LLM(endpoint="http://localhost", model="tiny")
    llm.model = "large"
    assert named_resources({"llm": llm}) == {"llm": LLM(endpoint="http://localhost", model="large")}


def test_known_types_come_back_in_their_classes():
    proxy = ProxyLLM(endpoint="http://localhost/v1", model="tiny", region="north")
    found = named_resources({"proxy": proxy, "plain": proxy.model_dump()})
    assert found == {"proxy": proxy, "plain": proxy}
    assert {type(one) for one in found.values()} == {ProxyLLM}


@pytest.mark.asyncio
async def test_other_types_come_back_as_plain_resources_with_all_their_fields():
    adapter = Adapter(rank=8, layers=["q", "v"], note={"by": "hand"})
    added = await InMemoryLightningStore().add_resources({"adapter": adapter})
    [found] = added.resources.values()
    assert type(found) is Resource
    assert found.model_dump() == adapter.model_dump()


@pytest.mark.parametrize("resources", [None, 5, "llm", [("llm", None)]])
def test_resources_must_be_a_mapping(resources: object):
    with pytest.raises(TypeError, match="mapping"):
        named_resources(resources)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://db/store", "postgresql://db/store"),
        ("postgresql://u@db:5432/store", "postgresql://u@db:5432/store"),
        ("postgresql://u:secret@db:5432/store", "postgresql://u:***@db:5432/store"),
        ("postgresql://u:se:cret@db/store", "postgresql://u:***@db/store"),
        ("postgresql://u:se@cret/@db/store", "postgresql://u:***@db/store"),
        ("postgresql://u:secret@a:1,b:2/store", "postgresql://u:***@a:1,b:2/store"),
        ("postgresql:///store?host=/run&password=secret&user=u", "postgresql:///store?host=/run&password=***&user=u"),
        ("postgresql://u:secret@db/?sslpassword=secret", "postgresql://u:***@db/?sslpassword=***"),
    ],
)
def test_no_password_is_shown(url, shown):
    assert without_password(url) == shown
