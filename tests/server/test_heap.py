"""What the server's process does about page faults, seen in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_store_server.heap import SET_BY_USER

pytestmark = pytest.mark.slow

ROUNDS = 10
PROGRAM = f"""
import resource
from lightning_store_server.heap import keep_freed_memory

def faults_a_round():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        [bytes(100_000) for _ in range(200)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun) // {ROUNDS}

before = faults_a_round()
kept = keep_freed_memory()
faults_a_round()
print(int(kept), before, faults_a_round())
"""


def run(**environment: str) -> tuple[bool, int, int]:
    """Whether it said that it has an effect; page faults of a call's worth of memory before and after."""
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    kept, before, after = map(int, ran.stdout.split())
    return bool(kept), before, after


def test_memory_that_was_freed_is_there_for_the_next_call():
    kept, before, after = run()
    if not kept:
        pytest.skip("not glibc")
    assert before > 1000
    assert after < 100


@pytest.mark.parametrize("name", SET_BY_USER)
def test_what_the_environment_says_is_left_alone(name: str):
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "131072"
    kept, _, after = run(**{name: value})
    assert not kept
    assert after > 1000
