"""Settings in a file: TOML, one key for each flag. Flags and variables win over it."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator
from typing import Any, Final

import click
from click.core import ParameterSource

from lightning_store.arguments import is_postgres, without_password
from lightning_store.errors import InvalidArgumentError
from lightning_store_server.cli.options import Retention

SOURCES: Final = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "variable",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}
NOT_IN_FILES: Final = frozenset({"config", "print-config", "check", "help"})
"""Flags that say what to do with the settings."""
_MEMORY: Final = "a store in memory"
_SQLITE: Final = "a SQLite database"
_POSTGRES: Final = "a PostgreSQL database"
ONLY_FOR: Final = {
    "namespace": _POSTGRES,
    "database_connections": _POSTGRES,
    "database_timeout": _POSTGRES,
    "statement_cache_size": _POSTGRES,
    "durability": _SQLITE,
    "disk_limit": _SQLITE,
    "disk_reserve": _SQLITE,
    "eviction_memory_threshold": _MEMORY,
    "safe_memory_threshold": _MEMORY,
    "memory_limit": _MEMORY,
}
"""What a setting is for, where it has no meaning for any other store."""


def read_settings(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """The callback of ``--config``: take what the file says in place of defaults.

    Raises:
        click.BadParameter: The file is no TOML, or a key or a value of it is not legal.
    """
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not valid TOML: {error}", ctx) from None
    options = dict(_options(ctx))
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            near = difflib.get_close_matches(key.replace("_", "-"), options, n=1, cutoff=0.4)
            hint = f"; is {near[0]} meant?" if near else "; `serve --help` lists the flags, which are the keys"
            raise click.BadParameter(f"{path}: {key} is no setting{hint}", ctx)
        assert option.name is not None
        if option.name in defaults:
            raise click.BadParameter(f"{path}: {key} is there twice, under another name", ctx)
        defaults[option.name] = _checked(ctx, option, value, f"{path}: {key}")
    ctx.default_map = defaults


def _options(ctx: click.Context) -> Iterator[tuple[str, click.Option]]:
    """Each name that a key may have, with its option."""
    for parameter in ctx.command.get_params(ctx):
        if isinstance(parameter, click.Option):
            for flag in parameter.opts:
                name = flag.removeprefix("--")
                if flag.startswith("--") and name not in NOT_IN_FILES:
                    yield name, parameter


def _checked(ctx: click.Context, option: click.Option, value: Any, where: str) -> Any:
    """The value as a flag would have it."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"{where} is {value!r}; give true or false", ctx)
        return value
    if option.multiple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise click.BadParameter(f"{where} is {value!r}; give a list of texts", ctx)
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise click.BadParameter(f"{where} is {value!r}; give a text or a number", ctx)
    try:
        option.process_value(ctx, str(value))
    except click.BadParameter as error:
        raise click.BadParameter(f"{where}: {error.message}", ctx) from None
    return str(value)


def _kept_in(database: str | None) -> str:
    if database is None:
        return _MEMORY
    return _POSTGRES if is_postgres(database) else _SQLITE


def refuse_foreign(ctx: click.Context) -> None:
    """Refuse settings that were given and have no meaning for this store.

    Raises:
        InvalidArgumentError: There are some.
    """
    kept_in = _kept_in(ctx.params["database"])
    flags = {option.name: option.opts[0] for _, option in _options(ctx)}
    foreign = [
        f"{flags[name]} is for {what}" for name, what in ONLY_FOR.items() if what != kept_in and _is_given(ctx, name)
    ]
    if foreign:
        raise InvalidArgumentError(f"{', '.join(foreign)}, and --database names {kept_in}", field="database")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


def settings_text(ctx: click.Context) -> str:
    """The settings in force as such a file, each with where it is from."""
    lines = []
    kept_in = _kept_in(ctx.params["database"])
    for option in dict.fromkeys(option for _, option in _options(ctx)):
        assert option.name is not None
        key = next(flag for flag in option.opts if flag.startswith("--")).removeprefix("--")
        if ONLY_FOR.get(option.name, kept_in) != kept_in and not _is_given(ctx, option.name):
            lines.append(f"# {key} is for {ONLY_FOR[option.name]}")
            continue
        value = _written(option.name, ctx.params[option.name])
        source = ctx.get_parameter_source(option.name)
        comment = SOURCES.get(source, "default") if source is not None else "default"
        lines.append(f"# {key} is not set" if value is None else f"{key} = {value}  # {comment}")
    return "\n".join(lines)


def _written(name: str, value: Any) -> str | None:
    """A value as TOML; None if there is none."""
    if name == "database":
        if value is not None and is_postgres(value):
            return _text(without_password(value))
        return _text("memory:" if value is None else f"sqlite:{value}")
    if name in ("drop_spans", "retain_for"):
        return _text(",".join(value)) if value else None
    if isinstance(value, Retention):
        if value.count is not None:
            return str(value.count)
        return None if value.seconds is None else _text(f"{value.seconds:g}s")
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, str):
        return _text(value)
    in_bytes = isinstance(value, int) and name.endswith(("_threshold", "_limit"))
    return _text(f"{value}B") if in_bytes else repr(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
