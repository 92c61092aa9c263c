"""Spans that are decoded at the first look into them are spans like any other, whoever looks first and how."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import to_json

from lightning_store.lazy import lazily
from lightning_store.model import Span, SpanContext
from tests.wire.same import assert_same


def a_span(**fields: Any) -> Span:
    context = SpanContext(trace_id="ab" * 16, span_id="cd" * 8, is_remote=False, trace_state={})
    values = {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 3, "trace_id": "ab" * 16, "span_id": "cd" * 8}
    return Span(**{**values, "name": "step", "attributes": {"a": [1]}, "context": context, "reward": 0.5, **fields})


def undecoded(**fields: Any) -> Span:
    [span] = lazily([Span], lambda values: a_span(**values), [fields])
    return span


def decoded(span: Span) -> bool:
    return type(span) is Span


class Holder(BaseModel):
    span: Span


class Revalidating(BaseModel):
    model_config = ConfigDict(revalidate_instances="always")
    spans: list[Span]


class Base(BaseModel):
    number: int


class Derived(Base):
    pass


LOOKS: dict[str, Callable[[Any], Any]] = {
    "field": lambda span: span.name,
    "extra field": lambda span: span.reward,
    "class": lambda span: span.__class__,
    "dict": lambda span: span.__dict__,
    "vars": vars,
    "dir": dir,
    "iteration": dict,
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "equal": lambda span: span == a_span(),
    "equal, on the right": lambda span: a_span() == span,
    "not equal": lambda span: span != a_span(name="other"),
    "equal to another thing": lambda span: span == Holder(span=span),
    "model_dump": lambda span: span.model_dump(),
    "model_dump_json": lambda span: span.model_dump_json(),
    "model_dump, unset left out": lambda span: span.model_dump(exclude_unset=True),
    "unbound model_dump": Span.model_dump,
    "to_json": to_json,
    "type adapter": lambda span: TypeAdapter(list[Span]).dump_json([span]),
    "model_fields_set": lambda span: span.model_fields_set,
    "model_extra": lambda span: span.model_extra,
    "model_copy": lambda span: span.model_copy(update={"name": "new"}),
    "deep model_copy": lambda span: span.model_copy(deep=True),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy inside": lambda span: copy.deepcopy({"spans": [span, span]}),
    "pickle": lambda span: pickle.loads(pickle.dumps(span)),
    "held by a model": lambda span: Holder(span=span).model_dump_json(),
    "revalidated": lambda span: Revalidating(spans=[span]),
    "validated": lambda span: Span.model_validate(span).name,
    "strictly validated": lambda span: Span.model_validate(span, strict=True).name,
    "getattr with a default": lambda span: getattr(span, "absent", "default"),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_every_look_sees_a_span(look):
    span = undecoded()
    seen, wanted = look(span), look(a_span())
    assert_same(seen, wanted)
    assert_same(span, a_span())
    assert decoded(span)


def test_it_is_an_instance_of_span_before_and_after():
    span: Any = undecoded()
    assert not isinstance(span, SpanContext)
    assert isinstance(span, BaseModel)
    assert isinstance(span, Span)
    assert type(span).__name__ == type(span).__qualname__ == "Span"
    assert span.name == "step"
    assert isinstance(span, Span)
    assert decoded(span)


def test_assigning_a_field_is_a_look():
    span = undecoded()
    span.name = "new"
    span.note = "extra"  # type: ignore[attr-defined]
    assert_same(span, a_span(name="new", note="extra"))
    assert "name" in span.model_fields_set


def test_deleting_a_field_is_a_look():
    span = undecoded()
    del span.reward  # type: ignore[attr-defined]
    assert span.model_extra == {}


def test_changes_stay():
    span = undecoded()
    span.attributes["more"] = 1
    span.sequence_id = 4
    assert span.attributes == {"a": [1], "more": 1}
    assert span.sequence_id == 4


def test_an_absent_attribute_is_an_error_as_ever():
    with pytest.raises(AttributeError, match="'Span' object has no attribute 'absent'"):
        undecoded().absent  # type: ignore[attr-defined]  # noqa: B018


def test_it_is_as_unhashable_as_any_span():
    with pytest.raises(TypeError, match="unhashable type: 'Span'"):
        hash(undecoded())


def test_two_that_nobody_looked_into_compare():
    assert undecoded() == undecoded()
    assert undecoded() != undecoded(name="other")
    assert undecoded() in [a_span(name="other"), undecoded()]


def test_it_can_be_referred_to_weakly():
    span = undecoded()
    reference = weakref.ref(span)
    assert span.name == "step"
    assert reference() is span


def test_each_is_of_the_model_that_was_told():
    models = [Base, Derived]
    for index, made in enumerate(lazily(models, lambda index: models[index](number=7), range(2))):
        assert type(made) not in models
        assert (isinstance(made, Base), isinstance(made, Derived)) == (True, models[index] is Derived)
        assert made == models[index](number=7)
        assert type(made) is models[index]


def test_it_is_decoded_once_and_what_it_was_decoded_from_is_let_go():
    class Source:
        def __init__(self) -> None:
            self.calls: list[None] = []

    def decode(source: Source) -> Span:
        source.calls.append(None)
        return a_span()

    source = Source()
    reference, calls = weakref.ref(source), source.calls
    [span] = lazily([Span], decode, [source])
    del source
    assert (span.name, span.sequence_id) == ("step", 3)
    assert len(calls) == 1
    gc.collect()
    assert reference() is None


def test_threads_that_look_at_once_see_one_object():
    both_decode = threading.Barrier(2, timeout=10)

    def decode(_: None) -> Span:
        both_decode.wait()
        return a_span()

    [span] = lazily([Span], decode, [None])
    seen: list[dict[str, Any]] = []

    def look() -> None:
        seen.append(span.attributes)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] is seen[1] is span.attributes
