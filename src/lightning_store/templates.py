"""Prompt templates, rendered as what they are: text from somebody else.

Resources come from the store, where others put them. So a template sees the values that it is given and nothing behind
them: attributes that begin with an underscore are refused, in f-strings and in jinja. And it cannot fill the memory:
its output is bounded, and in jinja each value on the way there too.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final

from lightning_store.errors import InvalidArgumentError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

OUTPUT_CHARS_MAX: Final = 16 * 1024 * 1024
"""Characters that a template renders to at most."""
ITEM_CHARS: Final = 32
"""What an item of a list counts beside its text, so that there are no more than half a million."""

_STEPS: Final = re.compile(r"\[[^\]]*\]|\.([^.\[]*)")
"""The steps of a replacement field, such as ``.name`` and ``[0]``; the group is the name of an attribute."""
_NUMBER: Final = re.compile(r"\d+")


def render_f_string(template: str, values: Mapping[str, Any]) -> str:
    """Render a template in the syntax of ``str.format``.

    Args:
        template: The template.
        values: The values by name.

    Raises:
        InvalidArgumentError: It asks for an attribute that begins with an underscore, or its output is too large.
        KeyError: It asks for a value that there is not.
    """
    return _Formatter().vformat(template, (), values)


def render_jinja(template: str, values: Mapping[str, Any]) -> str:
    """Render a jinja template in a sandbox. As :func:`render_f_string`, and ImportError without jinja2."""
    try:
        from jinja2.exceptions import SecurityError
    except ImportError as error:
        raise ImportError("a jinja template needs the package jinja2: pip install jinja2") from error
    try:
        return _sandbox().from_string(template).render(**values)
    except SecurityError as error:
        raise InvalidArgumentError(f"template: {error}", field="template") from None


def _private(name: str) -> InvalidArgumentError:
    message = f"template: the attribute {name!r} begins with an underscore, and a template may not use it"
    return InvalidArgumentError(message, field="template")


def _too_large() -> InvalidArgumentError:
    message = f"template: it makes a value of more than {OUTPUT_CHARS_MAX} characters"
    return InvalidArgumentError(message, field="template")


def _check(size: int) -> None:
    if size > OUTPUT_CHARS_MAX:
        raise _too_large()


class _Formatter(string.Formatter):
    """Formats one template."""

    def __init__(self) -> None:
        self._size = 0

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        for step in _STEPS.finditer(field_name):
            if step[1] is not None and step[1].startswith("_"):
                raise _private(step[1])
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> Any:
        _check(_largest_number(format_spec))
        formatted = super().format_field(value, format_spec)
        self._size += len(formatted)
        _check(self._size)
        return formatted


def _largest_number(text: str) -> int:
    """Of those in a text, which may be widths of a format; 1 if there is none."""
    numbers = [found if len(found) < 20 else "9" * 20 for found in _NUMBER.findall(text)]
    return max(map(int, numbers), default=1)


# --- Jinja -----------------------------------------------------------------------------------------------------------

_MULTIPLIES: Final = frozenset(
    {
        *(
            "batch",
            "format",
            "indent",
            "join",
            "replace",
            "slice",
            "tojson",
            "urlize",
            "wordwrap",
            "xmlattr",
        ),  # filters
        *("expandtabs", "format", "format_map", "join", "replace", "translate"),  # methods of texts
    }
)
"""What may return as much as its arguments multiplied; all else returns about as much as they are together."""


def _size_of(value: Any) -> int:
    """About the characters of a value as text, those of nested values each time that they occur. Past the limit it is
    not counted further."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if isinstance(value, _namespace_type()):
        return OUTPUT_CHARS_MAX + 1  # its text has all that is in it, which cannot be seen from here
    if not isinstance(value, Collection):
        return 1
    items = (part for pair in value.items() for part in pair) if isinstance(value, Mapping) else value
    size = 1
    for item in items:
        size += _size_of(item) + ITEM_CHARS
        if size > OUTPUT_CHARS_MAX:
            break
    return size


@cache
def _namespace_type() -> type:
    from jinja2.utils import Namespace

    return Namespace


def _checked(values: Sequence[Any], name: str) -> list[Any]:
    """The arguments of a function of this name, whose result is not too large. Iterators come back as lists."""
    listed = [_listed(value) if isinstance(value, Iterator) else value for value in values]
    total, product = 0, 1
    for value in listed:
        size = _size_of(value)
        if name == "wordwrap" and isinstance(value, int):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            size = abs(value)  # a width, or how often
        elif isinstance(value, str) and name.startswith("format"):
            size = max(size, _largest_number(value))
        total += size
        product *= max(1, size)
        _check(product if name in _MULTIPLIES else total)
    return listed


def _listed(values: Iterator[Any]) -> list[Any]:
    listed = []
    size = 0
    for value in values:
        listed.append(value)
        size += _size_of(value) + ITEM_CHARS
        _check(size)
    return listed


def _bounded(value: Any) -> Any:
    _check(_size_of(value))
    return value


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with its marks, which tell what jinja hands to it
    def bounded(*args: Any, **kwargs: Any) -> Any:
        checked = _checked([*args, *kwargs.values()], name)
        named = dict(zip(kwargs, checked[len(args) :], strict=True))
        return _bounded(function(*checked[: len(args)], **named))

    return bounded


def _bounded_sum(left: Any, operator: str, right: Any) -> None:
    """Check that an operator's result is not too large."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        _check(_size_of(left) * abs(right))
    elif operator == "*" and not numbers:
        _checked([left, right], "replace")
    elif operator == "%" and isinstance(left, str):
        _checked([left, *right] if isinstance(right, tuple) else [left, right], "format")
    else:
        _check(_size_of(left) + _size_of(right))


def _sandbox() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generator(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
            self.write("environment.joined((")
            for one in node.nodes:
                self.visit(one, frame)
                self.write(", ")
            self.write("))")

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise _private(attribute)

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            _bounded_sum(left, operator, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps str.format
            owner = getattr(method, "__self__", None)
            if not isinstance(owner, str | bytes):
                return super().call(__context, __obj, *args, **kwargs)
            checked = _checked([owner, *args, *kwargs.values()], method.__name__)[1:]
            named = dict(zip(kwargs, checked[len(args) :], strict=True))
            return _bounded(super().call(__context, __obj, *checked[: len(args)], **named))

        @staticmethod
        def joined(values: Iterable[Any]) -> str:
            return "".join(str(value) for value in _checked(list(values), "~"))

        @staticmethod
        def concat(parts: Iterable[str]) -> str:
            """Of what a template, a block or a macro renders to."""
            found: list[str] = []
            size = 0
            for part in parts:
                size += len(part)
                _check(size)
                found.append(part)
            return "".join(found)

    sandbox = Sandbox(finalize=_bounded)
    sandbox.filters = {name: _bounded_filter(name, one) for name, one in sandbox.filters.items()}
    del sandbox.globals["lipsum"]  # which makes text by the megabyte
    return sandbox
