"""The numbers in a text, and every value that one operation on two of them gives: the agent's possible answers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Operation = Literal["add", "multiply", "subtract", "subtract from", "divide", "divide into"]
"""What is done with two numbers a and b, a standing first in the text: a+b, a*b, a-b, b-a, a/b, b/a."""

OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

_TOKEN: Final = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[a-z]+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible answer."""

    first: int
    """Which number of the text is a, counted from 0; always less than ``second``."""
    second: int
    """Which number of the text is b."""
    operation: Operation
    value: float
    """The result; NaN for a division by zero."""
    expression: str
    """For people, such as ``26 - 9``."""

    def is_correct(self, answer: float) -> bool:
        """Whether the value equals ``answer``, up to the digits that answers are usually rounded to."""
        return math.isclose(self.value, answer, rel_tol=1e-6, abs_tol=1e-4)


def tokens(text: str) -> list[str]:
    """Words in lower case and numbers, in the order of the text; punctuation is dropped."""
    return _TOKEN.findall(text.lower())


def is_number(token: str) -> bool:
    """Whether a token is a number."""
    return token[0].isdigit()


def number(token: str) -> float:
    """The value of a token that is a number; ``1,250.5`` is 1250.5."""
    return float(token.replace(",", ""))


def candidates(numbers: list[float]) -> list[Candidate]:
    """Each operation on each pair of ``numbers``: 6 answers for two numbers, 18 for three, none for fewer than two."""
    return [
        _candidate(first, second, operation, numbers[first], numbers[second])
        for first in range(len(numbers))
        for second in range(first + 1, len(numbers))
        for operation in OPERATIONS
    ]


def _candidate(first: int, second: int, operation: Operation, a: float, b: float) -> Candidate:
    value, expression = _apply(operation, a, b)
    return Candidate(first, second, operation, value, expression)


def _apply(operation: Operation, a: float, b: float) -> tuple[float, str]:
    """The result of ``operation`` and how it is written."""
    match operation:
        case "add":
            return a + b, f"{a:g} + {b:g}"
        case "multiply":
            return a * b, f"{a:g} * {b:g}"
        case "subtract":
            return a - b, f"{a:g} - {b:g}"
        case "subtract from":
            return b - a, f"{b:g} - {a:g}"
        case "divide":
            return _divide(a, b), f"{a:g} / {b:g}"
        case "divide into":
            return _divide(b, a), f"{b:g} / {a:g}"


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
