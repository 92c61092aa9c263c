"""Where a server is: ``host:port``, several of them with commas between, or ``unix:///path``."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import sys
from typing import Final, NamedTuple

from lightning_store.errors import InvalidArgumentError, StoreUnavailableError

EXAMPLES: Final = "'localhost:4747', '[::1]:4747', 'a:4747,b:4747' or 'unix:///run/store.sock'"
UNIX: Final = "unix://"
UNIX_PATH_BYTES_MAX: Final = 107
"""What fits into the address of a socket, on Linux."""

SPREAD: Final = (
    "grpc.service_config",
    json.dumps({"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}]}),
)
"""Of several addresses each client takes any one, and the next when that is gone."""


class Target(NamedTuple):
    """What gRPC connects to."""

    name: str
    options: list[tuple[str, str]]


def checked_endpoint(endpoint: str) -> str:
    """``endpoint`` itself. InvalidArgumentError unless it has one of the forms of this module."""
    text = str(endpoint)
    if "@" in text and not text.startswith(UNIX):
        message = "endpoint has an @: a token is not taken from an address, which gets into logs; give it as token"
        raise InvalidArgumentError(message, field="endpoint")
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise _refusal(endpoint)
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            message = f"endpoint is {endpoint!r}; the path of a socket has {UNIX_PATH_BYTES_MAX} bytes at most"
            raise InvalidArgumentError(message, field="endpoint")
    elif not all(map(_is_host_and_port, text.split(","))):
        raise _refusal(endpoint)
    return endpoint


def target_of(endpoint: str) -> Target:
    """What gRPC is given for a checked endpoint.

    The names in a list of several are looked up here and now: gRPC looks up a single one only.

    Raises:
        StoreUnavailableError: None of several names is known.
    """
    if endpoint.startswith(UNIX):
        # By which its certificate is checked, where it speaks TLS.
        return Target(endpoint, [("grpc.default_authority", "localhost")])
    several = endpoint.split(",")
    if len(several) == 1:
        # With its scheme, or a host that is called "dns" or "unix" would be taken for one.
        return Target(f"dns:///{endpoint}", [SPREAD])
    return Target(_listed(_addresses(endpoint, several)), [SPREAD, ("grpc.default_authority", several[0])])


def refuse_gevent() -> None:
    """RuntimeError if gevent has replaced threads by its own: gRPC's would never run, and calls hang."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise RuntimeError(
            "gevent.monkey has patched threading, with which neither gRPC nor asyncio works; use "
            "lightning_store_client in a process that is not patched"
        )


def _is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    legal_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65535
    return bool(host) and not bare_ipv6 and legal_port and host.isprintable() and not re.search(r"[\s/]", host)


def _refusal(endpoint: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"endpoint is {endpoint!r}; give host:port, such as {EXAMPLES}", field="endpoint")


def _addresses(endpoint: str, several: list[str]) -> list[tuple[str, int]]:
    """The addresses of all hosts that are known."""
    found: dict[tuple[str, int], None] = {}
    failure: OSError | None = None
    for one in several:
        host, _, port = one.rpartition(":")
        try:
            known = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            failure = error
        else:
            found |= dict.fromkeys((str(address[0]), int(port)) for _, _, _, _, address in known)
    if not found:
        raise StoreUnavailableError(f"{endpoint}: none of these hosts is known: {failure}")
    return list(found)


def _listed(addresses: list[tuple[str, int]]) -> str:
    """gRPC takes lists of one family: of the newer one, which has a form for the addresses of the older, if need be."""
    parsed = [(ipaddress.ip_address(host), port) for host, port in addresses]
    if all(address.version == 4 for address, _ in parsed):
        return "ipv4:" + ",".join(f"{address}:{port}" for address, port in parsed)
    return "ipv6:" + ",".join(
        f"[::ffff:{address}]:{port}" if address.version == 4 else f"[{address}]:{port}" for address, port in parsed
    )
