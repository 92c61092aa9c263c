"""Keys and passwords in resources, hidden from those who need not see them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

MASK: Final = "********"

_SECRET_NAME: Final = re.compile(
    r".*((api|access|auth|private|secret|signing)[-_ ]?key|token|secret|password|passwd|credentials?|authorization)",
    re.IGNORECASE | re.DOTALL,
)
"""By these ends. ``max_tokens`` has none of them."""
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def masked(value: Any) -> Any:
    """JSON with :data:`MASK` for each secret: what is set under a name like ``api_key``, and the user in a URL."""
    if isinstance(value, Mapping):
        return {
            name: MASK if content is not None and _SECRET_NAME.fullmatch(str(name)) else masked(content)
            for name, content in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return _USER_INFO.sub(MASK, value) if isinstance(value, str) else value
