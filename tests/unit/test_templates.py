"""Prompt templates: what they render, and what they may not do."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lightning_store import InvalidArgumentError, PromptTemplate
from lightning_store.templates import OUTPUT_CHARS_MAX

HUGE = 10**10


class Value:
    """With something to find, and something behind it."""

    name = "deep"

    def __init__(self):
        self._secret = "secret"
        self.items_ = [{"key": SimpleNamespace(name="nested")}]


def f_string(template, **values):
    return PromptTemplate(template=template, engine="f-string").format(**values)


def jinja(template, **values):
    return PromptTemplate(template=template, engine="jinja").format(**values)


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("plain {{braces}}", {}),
        ("{question}", {"question": "why?"}),
        ("{a:>8}|{a!r:^{width}}|{b:.2f}", {"a": "x", "width": 9, "b": 1.234}),
        ("{value.name} {value.items_[0][key].name}", {"value": Value()}),
        ("{_private} {d[_x]} {d[a._b]}", {"_private": 1, "d": {"_x": 2, "a._b": 3}}),
    ],
)
def test_an_f_string_renders_as_str_format_does(template, values):
    assert f_string(template, **values) == template.format(**values)


@pytest.mark.parametrize(
    "template",
    [
        "{value.__init__.__globals__}",
        "{value.__class__}",
        "{value._secret}",
        "{value.items_[0][key].__class__}",
        "{number:{value.__class__}}",
        "{value.name.__len__!r:>10}",
    ],
)
def test_an_f_string_reaches_nothing_private(template):
    with pytest.raises(InvalidArgumentError, match="begins with an underscore"):
        f_string(template, value=Value(), number=1)


@pytest.mark.parametrize("template", [f"{{x:>{HUGE}}}", f"{{n:.{HUGE}f}}", "{x:>{n}}", "{x:9999999}" * 3])
def test_an_f_string_is_bounded(template):
    with pytest.raises(InvalidArgumentError, match=f"more than {OUTPUT_CHARS_MAX} characters"):
        f_string(template, x="x", n=HUGE)


def test_an_f_string_that_lacks_a_value_is_a_key_error():
    with pytest.raises(KeyError, match="question"):
        f_string("{question}")


USUAL = """\
{%- macro bullet(text, mark="*") -%}{{ mark ~ " " ~ text }}{%- endmacro -%}
{% for item in items if item.name %}{{ bullet(item.name | trim) }}{{ ", " if not loop.last }}{% endfor %}
{{ items | map(attribute="name") | join("; ") | upper }} {{ "%05.1f" % x }} {{ "{:>4}".format(n) }}
{{ data | tojson(indent=2) }} {{ text.replace("a", "b") | indent(4) | wordwrap(79) }} {{ missing | default("none") }}
{% set total = namespace(n=0) %}{% for i in range(3) %}{% set total.n = total.n + i * 2 %}{% endfor %}{{ total.n }}
{% set block %}{{ n ** 2 }}{% endset %}{{ block }} {{ [1] * 3 + [2] }} {{ "-" * 3 }}
{{ text | center(9) }} {{ data.k[0] }}"""


def test_jinja_renders_what_prompts_use():
    items = [SimpleNamespace(name=" one "), SimpleNamespace(name="two"), SimpleNamespace(name="")]
    values = {"items": items, "x": 2.25, "n": 7, "data": {"k": [1, None]}, "text": "a b"}
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert jinja(USUAL, **values) == ImmutableSandboxedEnvironment().from_string(USUAL).render(**values)


def test_jinja_renders_long_texts():
    document = "A line of a long document.\n" * 100_000
    rendered = jinja("{{ doc | indent(2) }}|{{ doc | wordwrap(79) | length }}|{{ doc.startswith('A') }}", doc=document)
    assert len(rendered) > len(document)


@pytest.mark.parametrize(
    "template",
    [
        "{{ value.__class__ }}",
        "{{ value._secret }}",
        "{{ value['__class__'] }}",
        "{{ value | attr('__class__') }}",
        "{{ [value] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(value) }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_jinja_reaches_nothing_private(template):
    with pytest.raises(InvalidArgumentError, match=r"^template: "):
        jinja(template, value=Value())


GROW = "{% set ns = namespace(x='x') %}{% for _ in range(64) %}{% set ns.x = GROWN %}{% endfor %}{{ ns.x }}"
LOOP = "{% for i in range(100000) %}{{ long }}{% endfor %}"
BOMBS = [
    "{{ 'a' * n }}",
    "{{ ('a' * 10000000) * 1000 }}",
    "{{ [0] * n }}",
    "{{ ['a' * 1000000] * 10000 }}",
    "{{ 9 ** n }}",
    "{{ 'a'.ljust(n) }}",
    "{{ 'a' | center(n) }}",
    "{{ '%*d' % (n, 1) }}",
    f"{{{{ '%{HUGE}d' % 1 }}}}",
    f"{{{{ '{{:>{HUGE}}}'.format(1) }}}}",
    "{{ '{:>{w}}'.format(1, w=n) }}",
    f"{{{{ '%{HUGE}d' | format(1) }}}}",
    "{{ long.replace('a', long) }}",
    "{{ long | replace('a', long) }}",
    "{{ long.join(range(10000) | map('string')) }}",
    "{{ range(10000) | join(long) }}",
    "{{ range(10000) | map('replace', '', long) | join }}",
    "{{ lines | indent(100000) }}",
    r"{{ '\t\t'.expandtabs(n) }}",
    "{{ [1] | batch(n, 'x') | list }}",
    "{{ [1, [2]] | tojson(indent=n) }}",
    "{{ lines | wordwrap(1, wrapstring=long) }}",
    "{{ 'ab'.translate({97: long * 10, 98: long * 10}) }}",
    LOOP,
    f"{{% set x %}}{LOOP}{{% endset %}}",
    f"{{% macro m() %}}{LOOP}{{% endmacro %}}{{{{ m() | length }}}}",
    f"{{% filter upper %}}{LOOP}{{% endfilter %}}",
    GROW.replace("GROWN", "ns.x ~ ns.x"),
    GROW.replace("GROWN", "ns.x + ns.x"),
    GROW.replace("GROWN", "[ns.x, ns.x]"),
    GROW.replace("GROWN", "{1: ns.x, 2: ns.x}"),
    GROW.replace("GROWN", "ns.x.replace('x', 'xx')"),
    GROW.replace("GROWN", "namespace(a=ns.x, b=ns.x)"),
    GROW.replace("GROWN", "'%s%s' % (ns.x, ns.x)"),
]


@pytest.mark.parametrize("template", BOMBS)
def test_jinja_is_bounded(template):
    with pytest.raises(InvalidArgumentError, match=f"more than {OUTPUT_CHARS_MAX} characters"):
        jinja(template, n=HUGE, long="a" * 1_000_000, lines="a\n" * 1_000_000)


def test_without_jinja2_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
    with pytest.raises(ImportError, match="pip install jinja2"):
        jinja("{{ x }}", x=1)
