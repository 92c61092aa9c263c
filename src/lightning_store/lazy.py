"""Objects that are made when somebody first looks into them: of those that a query returns, many are only passed on.

Such an object is of a private subclass of its model until an attribute of it is asked for, in whatever way, be it by
copying, comparing, printing or pickling. Then its fields are filled in, and the model itself becomes its class. Nobody
can tell but by ``type(…)`` before that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from types import new_class
from typing import Any, Final, TypeVar

from pydantic import BaseModel

ModelT = TypeVar("ModelT", bound=BaseModel)
SourceT = TypeVar("SourceT")

_STATE: Final = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__")
"""What a model without private attributes consists of."""


_keep: Final = vars(BaseModel)["__pydantic_private__"].__set__
"""Writes the slot that a model without private attributes does not use."""


def lazily(
    models: Iterable[type[ModelT]], make: Callable[[SourceT], ModelT], sources: Collection[SourceT]
) -> list[ModelT]:
    """An object for each source, that becomes what ``make`` returns for it; ``models`` are their classes, in order.

    What ``make`` raises is raised at each look.
    """
    made: list[ModelT] = list(map(object.__new__, map(_lazy_class, models)))
    for one, source in zip(made, sources, strict=True):
        _keep(one, {"make": make, "source": source})
    return made


def eagerly(make: Callable[..., ModelT]) -> Callable[..., list[ModelT]]:
    """What makes the objects of many sources now, one by one; more arguments go to each."""
    return lambda sources, *more: [make(source, *more) for source in sources]


@cache
def _lazy_class(model: type[ModelT]) -> type[ModelT]:
    """What :func:`lazily` makes. Methods of models do their work because each begins with an attribute of ``self``;
    those below are the ones that begin with ``type(self)``."""

    def __getattribute__(self: ModelT, name: str) -> Any:
        _fill_in(self, model)
        return getattr(self, name)

    def __copy__(self: ModelT) -> ModelT:
        _fill_in(self, model)
        return self.__copy__()

    def __deepcopy__(self: ModelT, memo: dict[int, Any] | None = None) -> ModelT:
        _fill_in(self, model)
        return self.__deepcopy__(memo)

    methods = (__getattribute__, __copy__, __deepcopy__)
    names = {"__module__": model.__module__, "__qualname__": model.__qualname__}
    body = {**names, **{method.__name__: method for method in methods}}
    return new_class(model.__name__, (model,), {"defer_build": True}, lambda namespace: namespace.update(body))


def _fill_in(lazily_made: ModelT, model: type[ModelT]) -> None:
    """Make it what it stands for. Threads may do so at the same time: they agree on the result of who was first."""
    kept = object.__getattribute__(lazily_made, "__pydantic_private__")
    if kept is None:
        return
    made = kept.get("made")
    if made is None:
        made = kept.setdefault("made", kept["make"](kept["source"]))
    for name in _STATE:
        object.__setattr__(lazily_made, name, object.__getattribute__(made, name))
    object.__setattr__(lazily_made, "__class__", model)
    _keep(lazily_made, None)
