"""How a command reaches a server: the flags that say where it is and what to show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from lightning_store.errors import InvalidArgumentError
from lightning_store_client import LightningStoreClient
from lightning_store_client.endpoint import checked_endpoint
from lightning_store_server.cli.options import DEFAULT_SERVER, setting

F = TypeVar("F", bound=Callable[..., Any])

_META: Final = "lightning_store.credentials"


def endpoint(_: click.Context, __: click.Parameter, text: str) -> str:
    """``text`` if it is HOST:PORT; click.BadParameter otherwise."""
    try:
        return checked_endpoint(text)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from None


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep the flag for :func:`client_of`, so that no command need hand it on."""
    if value is not None:
        ctx.meta.setdefault(_META, {})[param.name] = value


def _credential(flag: str, help: str, **attributes: Any) -> Callable[[F], F]:
    return setting(flag, help=help, callback=_keep, expose_value=False, **attributes)


_FLAGS: Final[tuple[Callable[[Any], Any], ...]] = (
    _credential("--tls-client-key", "The key of that certificate.", metavar="FILE"),
    _credential("--tls-client-cert", "Certificate to show, where the server asks for one.", metavar="FILE"),
    _credential("--tls-ca", "Speak TLS, and trust the authorities in this file alone.", metavar="FILE"),
    _credential("--tls/--no-tls", "Speak TLS.", default=None),
    _credential("--token-file", "File with the token to send; LIGHTNING_STORE_TOKEN has it otherwise.", metavar="FILE"),
    setting("--server", default=DEFAULT_SERVER, callback=endpoint, metavar="ADDRESS", help="The server to ask."),
)


def on_any_server(command: F) -> F:
    """The flags of each command that speaks to a server."""
    for flag in _FLAGS:
        command = flag(command)
    return command


def client_of(server: str, **options: Any) -> LightningStoreClient:
    """A client of ``server`` with the credentials of the present command, which ends if they are not legal."""
    given = dict(click.get_current_context().meta.get(_META, {}))
    ca = given.pop("tls_ca", None)
    if ca is not None and given.get("tls") is not False:
        given["tls"] = ca
    try:
        return LightningStoreClient(server, **given, **options)
    except InvalidArgumentError as error:
        raise click.UsageError(str(error)) from None
