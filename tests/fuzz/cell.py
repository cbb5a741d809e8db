"""One draw of one cell: a callable with right arguments, of which one is made wrong, and what came of it."""

import contextlib
import inspect
import resource
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator

from tests.fuzz.kinds import KINDS, generator, mutations
from torchrec_mtl.errors import InputError, TrainingError

DRAWN = "drawn"  # right arguments only
SECONDS = 20  # that a call may take
BYTES = 2 * 2**30  # that a call may take beyond what is there


@dataclass(frozen=True)
class Case:
    """A public callable: how it is called, and what is right.

    Args:
        call: the callable.
        draw: draws right arguments, all that it takes, by name.
        judge: ``judge(arguments, result)`` raises if the result is wrong, also for arguments that were made wrong and
            accepted.
        typed: whether arguments have types; those of a command line are text.
        refused: whether `draw` itself draws what is refused, where anything right would take long.
    """

    call: Callable[..., Any]
    draw: Callable[[Generator], dict[str, Any]]
    judge: Callable[[Mapping[str, Any], Any], None]
    typed: bool = True
    refused: bool = False


class HangError(Exception):
    """A call took longer than `SECONDS`."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Ends a call that hangs, and refuses it memory."""

    def end(*_: object) -> None:
        raise HangError(f"no answer within {SECONDS} s")

    with open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, hard))
    former = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def choices(case: Case, kind: str, rng: Generator) -> list[tuple[str, Any]]:
    """Right arguments of a draw with one of them made wrong, in every way that the kind has; the name of that one."""
    arguments = case.draw(rng)
    found = [
        (name, {**arguments, name: wrong}) for name, right in arguments.items() for wrong in mutations(kind, right, rng)
    ]
    if kind == "near-miss name":
        for name, value in arguments.items():
            if len(name) > 3:
                rest = {key: each for key, each in arguments.items() if key != name}
                found.append((name, {**rest, name[:1] + name[2:]: value}))
    return found


def kinds_of(case: Case) -> list[str]:
    """The kinds that mean something for a callable's arguments."""
    return [DRAWN, *(kind for kind in KINDS if any(choices(case, kind, generator(seed)) for seed in range(8)))]


def refuses(error: InputError | TrainingError, expected: bool) -> None:
    """A refusal is one sentence, about what is wrong."""
    sentence = str(error)
    assert expected, f"right arguments were refused: {sentence}"
    assert sentence.strip(), "an empty refusal"
    assert "\n" not in sentence, f"a refusal of several lines: {sentence}"
    assert len(sentence) < 1000, f"a refusal of {len(sentence)} letters: {sentence[:200]}"


def draw(name: str, case: Case, kind: str, seed: int) -> str:
    """Makes one draw; returns "worked" or "refused", or raises an AssertionError that says how to repeat it."""
    rng = generator(name, kind, seed)
    argument, arguments = DRAWN, {}
    if kind == DRAWN:
        arguments = case.draw(rng)
    else:
        while not (found := choices(case, kind, rng)):  # what is None in this draw is a number in another
            pass
        names = sorted({name for name, _ in found})
        argument = names[seed % len(names)]  # every argument in turn
        of_argument = [wrong for name, wrong in found if name == argument]
        arguments = of_argument[int(rng.integers(len(of_argument)))]
    try:
        inspect.signature(case.call).bind(**arguments)
    except TypeError:  # Python's own: a missing or unexpected argument
        return "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            with limits():
                try:
                    result = case.call(**arguments)
                except (InputError, TrainingError) as error:
                    refuses(error, expected=kind != DRAWN or case.refused)
                    return "refused"
                case.judge(arguments, result)
        except Exception as error:
            shown = f"{name}, {kind}, seed {seed}: `{argument}`={arguments.get(argument)!r:.200}"
            raise AssertionError(f"{shown} of {arguments!r:.600} ended in {type(error).__name__}: {error}") from error
    assert kind != "wrong type" or not case.typed, (
        f"{name}, seed {seed}: `{argument}`={arguments[argument]!r:.200} was accepted"
    )
    return "worked"
