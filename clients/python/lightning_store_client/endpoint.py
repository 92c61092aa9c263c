"""Where a server is: ``host:port``."""

from __future__ import annotations

import re

from lightning_store.errors import InvalidArgumentError

EXAMPLES = "'localhost:4747' or '[::1]:4747'"


def checked_endpoint(endpoint: str) -> str:
    """``endpoint`` itself; ValueError unless it is a host's name or address, a colon, and a port from 1 to 65535."""
    host, _, port = str(endpoint).rpartition(":")
    bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    legal_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65535
    if not host or bare_ipv6 or not legal_port or not host.isprintable() or re.search(r"[\s/]", host):
        raise InvalidArgumentError(f"endpoint is {endpoint!r}; give host:port, such as {EXAMPLES}", field="endpoint")
    return endpoint
