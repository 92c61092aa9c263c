"""Fact 24: resources and their versions."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store.errors import ResourcesNotFoundError
from lightning_store.model import LLM, PromptTemplate, ProxyLLM, Resource, ResourcesUpdate
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, some_llm


class ResourcesContract(ContractBase):
    """add_resources, update_resources, get_resources_by_id, get_latest_resources."""

    async def test_f24_add_publishes_version_1(self, store: LightningStore, clock: FakeClock) -> None:
        added = await store.add_resources(some_llm())
        assert added == ResourcesUpdate(
            resources_id=added.resources_id,
            resources=some_llm(),
            create_time=clock.now(),
            update_time=clock.now(),
            version=1,
            policy_version=1,
        )
        assert await store.get_resources_by_id(added.resources_id) == added
        assert await store.get_latest_resources() == added

    async def test_f24_each_add_has_its_own_id(self, store: LightningStore) -> None:
        first, second = await store.add_resources(some_llm()), await store.add_resources(some_llm())
        assert first.resources_id != second.resources_id
        assert await store.get_latest_resources() == second

    async def test_f24_update_replaces_under_the_next_version(self, store: LightningStore, clock: FakeClock) -> None:
        added = await store.add_resources(some_llm())
        clock.advance(5)
        prompt = PromptTemplate(template="{question}", engine="f-string")
        updated = await store.update_resources(added.resources_id, {"prompt": prompt})
        assert updated == ResourcesUpdate(
            resources_id=added.resources_id,
            resources={"prompt": prompt},
            create_time=added.create_time,
            update_time=clock.now(),
            version=2,
            policy_version=2,
        )
        assert await store.get_resources_by_id(added.resources_id) == updated
        assert len(await store.query_resources()) == 1

    async def test_f24_update_makes_it_the_latest(self, store: LightningStore) -> None:
        older = await store.add_resources(some_llm())
        await store.add_resources(some_llm())
        updated = await store.update_resources(older.resources_id, some_llm("new"))
        assert await store.get_latest_resources() == updated

    async def test_f24_update_creates_an_unknown_id(self, store: LightningStore, clock: FakeClock) -> None:
        created = await store.update_resources("mine", some_llm())
        assert created == ResourcesUpdate(
            resources_id="mine",
            resources=some_llm(),
            create_time=clock.now(),
            update_time=clock.now(),
            version=1,
            policy_version=1,
        )
        assert await store.get_latest_resources() == created

    async def test_f24_strict_update_of_an_unknown_id(self, strict_store: LightningStore) -> None:
        with pytest.raises(ResourcesNotFoundError, match="mine"):
            await strict_store.update_resources("mine", some_llm())
        assert await strict_store.get_resources_by_id("mine") is None
        added = await strict_store.add_resources(some_llm())
        assert (await strict_store.update_resources(added.resources_id, some_llm("new"))).version == 2

    async def test_f24_each_known_type_comes_back(self, store: LightningStore) -> None:
        resources: dict[str, Resource] = {
            "llm": LLM(
                endpoint="http://a/v1", model="m", api_key="k", sampling_parameters={"temperature": 0.7, "n": 2}
            ),
            "proxy": ProxyLLM(endpoint="http://b/v1", model="m"),
            "prompt": PromptTemplate(template="{{ x }}", engine="jinja"),
        }
        added = await store.add_resources(resources)
        assert added.resources == resources
        found = await store.get_latest_resources()
        assert found is not None
        types = {name: type(resource) for name, resource in found.resources.items()}
        assert types == {"llm": LLM, "proxy": ProxyLLM, "prompt": PromptTemplate}

    async def test_f24_an_unknown_type_keeps_all_its_fields(self, store: LightningStore) -> None:
        custom = Resource.model_validate({"resource_type": "weights", "layers": [[0.1, 0.2], [3]], "meta": {"a": None}})
        added = await store.add_resources({"w": custom})
        assert added.resources == {"w": custom}
        assert added.resources["w"].model_extra == {"layers": [[0.1, 0.2], [3]], "meta": {"a": None}}

    async def test_f24_resources_are_copied(self, store: LightningStore) -> None:
        llm = LLM(endpoint="http://a/v1", model="m", sampling_parameters={"stop": ["a"]})
        resources: dict[str, Resource] = {"llm": llm}
        added = await store.add_resources(resources)
        unchanged = added.model_copy(deep=True)
        llm.sampling_parameters["stop"].append("b")
        resources["more"] = llm
        added.resources.clear()
        assert await store.get_latest_resources() == unchanged

    async def test_f24_there_may_be_none(self, store: LightningStore) -> None:
        assert await store.get_latest_resources() is None
        assert list(await store.query_resources()) == []

    async def test_f24_concurrent_updates_lose_no_version(self, store: LightningStore) -> None:
        added = await store.add_resources(some_llm())
        updates = [store.update_resources(added.resources_id, some_llm(str(number))) for number in range(20)]
        versions = [update.version for update in await asyncio.gather(*updates)]
        assert sorted(versions) == list(range(2, 22))
        latest = await store.get_latest_resources()
        assert latest is not None
        assert latest.version == 21
