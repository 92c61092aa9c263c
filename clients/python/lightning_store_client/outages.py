"""Tells the log once of each time in which the server cannot be reached, or refuses."""

from __future__ import annotations

import logging

from lightning_store.errors import StoreError

logger = logging.getLogger("lightning_store_client")


class Outages:
    """Of one client: the kinds of failure for which calls are made again, until one succeeds."""

    def __init__(self) -> None:
        self._kinds: set[type[StoreError]] = set()

    def note(self, rpc: str, failure: StoreError, *, cut: bool) -> None:
        """A call failed and is made again: a warning for the first of an outage.

        Args:
            rpc: The method.
            failure: Why it failed.
            cut: Whether a stream broke off that the server had taken, which behind a proxy is no outage.
        """
        kind = type(failure)
        is_news = not cut and kind not in self._kinds
        if is_news:
            self._kinds.add(kind)
        logger.log(logging.WARNING if is_news else logging.INFO, "%s: %s; it is made again", rpc, failure)

    def end(self) -> None:
        """A call succeeded."""
        if self._kinds:
            self._kinds.clear()
            logger.info("calls succeed again")
