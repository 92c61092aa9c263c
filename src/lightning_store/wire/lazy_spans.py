"""Spans that are decoded when somebody first looks into them: of those that a query returns, many are only passed on.

Such a span is of a private subclass of :class:`~lightning_store.model.Span` until an attribute of it is asked for, in
whatever way, be it by copying, comparing, printing or pickling. Then its fields are filled in, and Span itself becomes
its class. Nobody can tell but by ``type(span)`` before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lightning_store.model import Span

_STATE: Final = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__")
"""What a model without private attributes consists of."""


def lazy_span(decode: Callable[[], Span]) -> Span:
    """A span that becomes what ``decode`` returns. It must not fail: nobody reckons with an error of an attribute."""
    span = object.__new__(_LazySpan)
    object.__setattr__(span, "__pydantic_private__", {"decode": decode})
    return span


class _LazySpan(Span, defer_build=True):
    """What :func:`lazy_span` makes. Methods of Span do their work because each begins with an attribute of ``self``;
    those below are the ones that begin with ``type(self)``."""

    def __getattribute__(self, name: str) -> Any:
        _fill_in(self)
        return getattr(self, name)

    def __copy__(self) -> Span:  # type: ignore[override]
        _fill_in(self)
        return self.__copy__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Span:  # type: ignore[override]
        _fill_in(self)
        return self.__deepcopy__(memo)


_LazySpan.__name__, _LazySpan.__qualname__ = Span.__name__, Span.__qualname__


def _fill_in(span: Span) -> None:
    """Make it a Span. Threads may do so at the same time: they agree on the result of whoever decoded first."""
    source = object.__getattribute__(span, "__pydantic_private__")
    if source is None:
        return
    decoded = source.setdefault("span", source["decode"]())
    for name in _STATE:
        object.__setattr__(span, name, object.__getattribute__(decoded, name))
    object.__setattr__(span, "__class__", Span)
    object.__setattr__(span, "__pydantic_private__", None)
