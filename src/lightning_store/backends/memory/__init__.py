"""The backend that holds everything in this process's memory."""

from __future__ import annotations

from lightning_store.backends.memory.backend import REPLAY_ENTRIES_MAX, REPLAY_WINDOW_SECONDS, MemoryBackend

__all__ = ["REPLAY_ENTRIES_MAX", "REPLAY_WINDOW_SECONDS", "MemoryBackend"]
