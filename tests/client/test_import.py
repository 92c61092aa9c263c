"""Importing the packages leaves the process as it was, and gRPC ready for forks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHECK = """
import asyncio, atexit, faulthandler, gc, importlib, locale, logging, multiprocessing, os, signal, socket, sys
import threading, warnings

def state():
    return {
        "environment": dict(os.environ),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "signal wakeup": signal.set_wakeup_fd(-1),
        "root logger": (list(logging.root.handlers), logging.root.level, logging.root.manager.disable),
        "logger class": (logging.getLoggerClass(), logging.getLogRecordFactory()),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "exit functions": atexit._ncallbacks(),
        "event loop policy": asyncio.get_event_loop_policy(),
        "threads": threading.enumerate(),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "recursion and switches": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks)),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "locale": locale.setlocale(locale.LC_ALL),
        "directory and umask": (os.getcwd(), os.umask(0o22)),
        "socket timeout": socket.getdefaulttimeout(),
        "faulthandler": faulthandler.is_enabled(),
    }

before = state()
importlib.import_module(sys.argv[1])
after = state()
changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
sys.exit(f"importing it changed {changed}" if changed else 0)
"""

WATCH = """
import importlib, os, sys

seen = []
sys.addaudithook(
    lambda event, arguments: event == "import"
    and arguments[0] == "grpc._cython.cygrpc"
    and seen.append(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
)
import lightning_store_client
print(seen[0], os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
"""


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")} | variables
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["lightning_store", "lightning_store_client"])
def test_importing_changes_nothing_in_the_process(package):
    result = python(CHECK, package)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(("given", "seen"), [({}, "1 None"), ({"GRPC_ENABLE_FORK_SUPPORT": "0"}, "0 0")])
def test_grpc_is_imported_ready_for_forks_unless_told_otherwise(given, seen):
    result = python(WATCH, **given)
    assert (result.stdout.strip(), result.stderr) == (seen, "")
