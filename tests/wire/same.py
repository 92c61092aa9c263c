"""Equality that tells 1 from 1.0 and True, and holds for nan."""

from __future__ import annotations

import math

from pydantic import BaseModel


def assert_same(found, wanted):
    """``found`` has the type and the value of ``wanted``, all the way down."""
    assert _same(found, wanted), f"{found!r} is not the same as {wanted!r}"


def through_bytes(message):
    """What the other end parses."""
    return type(message).FromString(message.SerializeToString())


def _same(found, wanted):
    if isinstance(wanted, BaseModel):
        return found.__class__ is wanted.__class__ and _same(dict(found), dict(wanted))
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            return False
        return all(_same(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(_same(a, b) for a, b in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return type(found) is type(wanted) and found == wanted
