"""The response to an export request: how many spans were rejected, and why."""

from __future__ import annotations

from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

CAUSES_MAX: Final = 3
"""Different causes that a response lists."""
CAUSE_CHARS_MAX: Final = 300
"""Characters of each of them; exporters log a response as one line."""


class ExportReport:
    """The results of one request."""

    def __init__(self) -> None:
        self._rejected = _Complaints()
        self._warned = _Complaints()

    def add_rejected(self, path: str, cause: str) -> None:
        """Count a span that is not stored.

        Args:
            path: Its place in the request.
            cause: Why it cannot be stored.
        """
        self._rejected.add(path, cause)

    def add_warning(self, path: str, complaint: str) -> None:
        """Count a span that is stored, although something about it is malformed.

        Args:
            path: Its place in the request.
            complaint: What was ignored.
        """
        self._warned.add(path, complaint)

    def response(self) -> ExportTraceServiceResponse:
        """Make the response.

        Returns:
            An empty message if all is well, else one with the number of rejected spans and the first causes.
        """
        response = ExportTraceServiceResponse()
        parts = []
        if self._rejected.count:
            response.partial_success.rejected_spans = self._rejected.count
            parts.append(f"{_spans(self._rejected.count)} rejected: {self._rejected}")
        if self._warned.count:
            parts.append(f"{_spans(self._warned.count)} stored with a warning: {self._warned}")
        if parts:
            response.partial_success.error_message = ". ".join(parts)
        return response


class _Complaints:
    """Complaints about spans; equal ones are counted together."""

    def __init__(self) -> None:
        self.count = 0
        self._firsts: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, path: str, complaint: str) -> None:
        self.count += 1
        if complaint in self._firsts or len(self._firsts) < CAUSES_MAX:
            self._firsts.setdefault(complaint, path)
            self._counts[complaint] = self._counts.get(complaint, 0) + 1

    def __str__(self) -> str:
        told = []
        for complaint, path in self._firsts.items():
            count = self._counts[complaint]
            where = path if count == 1 else f"{_spans(count)}, the first is {path}"
            cut = complaint if len(complaint) <= CAUSE_CHARS_MAX else complaint[:CAUSE_CHARS_MAX] + "…"
            told.append(f"{cut} ({where})")
        if others := self.count - sum(self._counts.values()):
            told.append(f"and {_spans(others)} for other causes")
        return "; ".join(told)


def _spans(count: int) -> str:
    return "1 span" if count == 1 else f"{count} spans"
