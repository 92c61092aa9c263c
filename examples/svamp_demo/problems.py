"""Word problems: generated from templates, or loaded from a file in the form of the SVAMP challenge set.

SVAMP has 1,000 problems in English, of which this agent can do 761: Patel, Bhattamishra and Goyal, "Are NLP Models
really able to Solve Simple Math Word Problems?", NAACL 2021. Under the MIT licence it is at
https://github.com/arkilpatel/SVAMP, as SVAMP.json.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from examples.svamp_demo.arithmetic import candidates, is_number, number, tokens

PROBLEMS_MIN: Final = 20
"""Fewer solvable problems than this cannot be split into a part to learn from and a part held out."""

GENERATED_PROBLEMS: Final = 600
HELD_OUT_SHARE: Final = 0.2

_HOW_TO: Final = (
    'each problem is a JSON object such as {"Body": "Ann had 5 pens. She lost 2.", "Question": "How many are left?", '
    '"Answer": 3}; mend it, or leave out --data'
)


class DataError(ValueError):
    """The data cannot be used. The message says where and what to do."""


class Problem(BaseModel):
    """One word problem. As JSON it is the input of a rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem_id: str
    body: str
    question: str
    answer: float

    def text(self) -> str:
        """Body and question, as a person reads them."""
        return f"{self.body} {self.question}"

    def is_solvable(self) -> bool:
        """Whether one operation on two numbers of the text gives the answer."""
        numbers = [number(token) for token in tokens(self.text()) if is_number(token)]
        return any(candidate.is_correct(self.answer) for candidate in candidates(numbers))


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of one run: only those that one operation solves."""

    source: str
    """Where they come from, for people."""
    problems: tuple[Problem, ...]
    left_out: int
    """Problems of the source that need more than one operation."""

    def split(self, seed: int) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
        """Problems to learn from, and problems held out. The same seed splits in the same way."""
        shuffled = list(self.problems)
        random.Random(seed).shuffle(shuffled)
        held_out = max(1, round(len(shuffled) * HELD_OUT_SHARE))
        return tuple(shuffled[held_out:]), tuple(shuffled[:held_out])


class _Line(BaseModel):
    """What is read of a line; other fields are ignored."""

    ID: str | None = None
    Body: Annotated[str, Field(min_length=1)]
    Question: Annotated[str, Field(min_length=1)]
    Answer: Annotated[float, Field(allow_inf_nan=False)]
    Equation: str | None = None

    def one_operation(self) -> bool:
        """False only where the line itself says so; an answer can come out right by chance."""
        return self.Equation is None or sum(map(self.Equation.count, (" + ", " - ", " * ", " / "))) <= 1


def obtain(data: Path | None, *, seed: int) -> ProblemSet:
    """The problems to use: those of the file ``data``, else generated ones.

    DataError where the file cannot be read or has too few usable problems.
    """
    if data is not None:
        return load(data)
    problems = generate(GENERATED_PROBLEMS, seed)
    return ProblemSet(f"templates with seed {seed}", tuple(problems), left_out=0)


def load(path: Path) -> ProblemSet:
    """The problems of a file: a JSON list of them, as SVAMP.json is, or one on each line; empty lines are skipped.

    DataError names the file, and the line or the place in the list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give --data a file of JSON, or leave it out") from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    parsed = [(index, _check(f"{path}:{index}", value)) for index, value in _read(path, text)]
    # Keyed by text: a problem that is there twice must not be in both parts of a split.
    problems = {f"{line.Body} {line.Question}": _problem(index, line) for index, line in parsed if line.one_operation()}
    solvable = [problem for problem in problems.values() if problem.is_solvable()]
    if len(solvable) < PROBLEMS_MIN:
        raise DataError(
            f"{path}: one operation on two numbers of the text solves {len(solvable)} of {len(parsed)} problems; "
            f"the demo needs {PROBLEMS_MIN} or more"
        )
    return ProblemSet(str(path), tuple(solvable), left_out=len(parsed) - len(solvable))


def _read(path: Path, text: str) -> list[tuple[int, Any]]:
    """The JSON values of the file with their numbers, which are those of their lines unless they are a list."""
    if text.lstrip().startswith("["):
        return list(enumerate(_loads(str(path), text), start=1))
    lines = enumerate(text.splitlines(), start=1)
    return [(index, _loads(f"{path}:{index}", line)) for index, line in lines if line.strip()]


def _loads(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON ({error}); {_HOW_TO}") from error


def _check(place: str, value: Any) -> _Line:
    try:
        return _Line.model_validate(value)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, part['loc'])) or 'problem'}: {part['msg']}" for part in error.errors())
        raise DataError(f"{place}: {found}; {_HOW_TO}") from error


def _problem(index: int, line: _Line) -> Problem:
    return Problem(problem_id=line.ID or f"line-{index}", body=line.Body, question=line.Question, answer=line.Answer)


# --- Generated problems ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Template:
    """A problem with places for words and for the numbers ``a`` and ``b``; the operation is a + b, a - b, …"""

    body: str
    question: str
    operation: str


_TEMPLATES: Final[tuple[_Template, ...]] = (
    _Template("{name} had {a} {thing} and {gained} {b} more.", "How many {thing} does {name} have now?", "+"),
    _Template("{name} {lost} {a} {thing} and still has {b}.", "How many {thing} did {name} have at first?", "+"),
    _Template("{name} {gained} {a} {thing}. {other} {gained} {b}.", "How many {thing} did they get together?", "+"),
    _Template("{name} {lost} {a} {thing} on Monday and {b} on Friday.", "How many {thing} are gone altogether?", "+"),
    _Template("There are {a} {thing} in the {holder} and {b} beside it.", "How many {thing} are there in all?", "+"),
    _Template("{name} had {a} {thing} and {lost} {b} of them.", "How many {thing} are left?", "-"),
    _Template("{name} {lost} {b} of the {a} {thing}.", "How many {thing} does {name} have now?", "-"),
    _Template("{name} {gained} {b} {thing} and has {a} now.", "How many {thing} did {name} have at first?", "-"),
    _Template("{name} {gained} {a} {thing}. {other} {gained} {b}.", "How many more did {name} get than {other}?", "-"),
    _Template("{name} has {b} {thing} and wants to have {a}.", "How many more {thing} are needed?", "-"),
    _Template("{name} had {a} {thing} and has {b} now.", "How many {thing} are gone?", "-"),
    _Template("There are {a} {holder}s with {b} {thing} in each.", "How many {thing} are there in all?", "*"),
    _Template("{name} {gained} {b} {thing} a day for {a} days.", "How many {thing} did {name} get altogether?", "*"),
    _Template("{name} {gained} {a} {thing} at {b} dollars each.", "How many dollars were paid?", "*"),
    _Template("Each of the {a} {holder}s has room for {b} {thing}.", "How many {thing} have room together?", "*"),
    _Template("{name} puts {a} {thing} evenly into {b} {holder}s.", "How many {thing} are in each {holder}?", "/"),
    _Template("{name} has {a} {thing}. Each {holder} takes {b}.", "How many {holder}s are needed?", "/"),
    _Template("{name} paid {a} dollars for {b} {thing}.", "How many dollars does each cost?", "/"),
    _Template("{b} friends share the {a} {thing} of {name}.", "How many {thing} does each friend get?", "/"),
)
_ASIDES: Final = (
    "{other} has {c} {another}.",
    "{other} {lost} {c} {another} too.",
    "{name} is {c} years old.",
    "All that took {c} days.",
    "There are {c} {another} as well.",
    "The {holder} weighs {c} pounds.",
)
"""Sentences with a number that is not needed."""
_ASIDES_MAX: Final = 2
"""One problem has no such sentence, or up to so many, before or after its own."""
_NAMES: Final = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Freya", "Goran", "Hana", "Ines", "Jonas")
_THINGS: Final = ("marbles", "stickers", "pencils", "apples", "shells", "stamps", "buttons", "cards")
_HOLDERS: Final = ("box", "bag", "jar", "shelf", "crate", "drawer")
_GAINED: Final = ("found", "bought", "won", "collected", "picked", "received", "earned", "borrowed")
_LOST: Final = ("lost", "sold", "broke", "donated", "dropped", "mailed", "traded", "forgot")


def generate(count: int, seed: int) -> list[Problem]:
    """``count`` different problems from the templates, each solved by one operation. The same seed makes the same."""
    chance = random.Random(seed)
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = _fill(chance.choice(_TEMPLATES), chance, f"generated-{len(found) + 1}")
        found.setdefault(problem.text(), problem)
    return list(found.values())


def _fill(template: _Template, chance: random.Random, problem_id: str) -> Problem:
    a, b, answer = _numbers(template.operation, chance)
    name, other = chance.sample(_NAMES, 2)
    thing, another = chance.sample(_THINGS, 2)
    words: dict[str, str | int] = {
        "name": name,
        "other": other,
        "thing": thing,
        "another": another,
        "holder": chance.choice(_HOLDERS),
        "gained": chance.choice(_GAINED),
        "lost": chance.choice(_LOST),
        "a": a,
        "b": b,
    }
    sentences = [template.body.format_map(words)]
    for aside in chance.sample(_ASIDES, chance.randint(0, _ASIDES_MAX)):
        place = chance.choice((0, len(sentences)))
        sentences.insert(place, aside.format_map({**words, "c": chance.randint(2, 99)}))
    question = template.question.format_map(words)
    return Problem(problem_id=problem_id, body=" ".join(sentences), question=question, answer=answer)


def _numbers(operation: str, chance: random.Random) -> tuple[int, int, int]:
    """a, b and the answer, such that the answer is a positive whole number."""
    small, large = chance.randint(2, 12), chance.randint(13, 99)
    match operation:
        case "+":
            a, b = chance.sample((small, large), 2)
            return a, b, a + b
        case "-":
            return large, small, large - small
        case "*":
            a, b = chance.sample((small, large), 2)
            return a, b, a * b
        case _:
            return small * large, small, large
