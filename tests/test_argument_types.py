"""A wrong type is one sentence, whatever the annotation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import pytest
from numpy.typing import ArrayLike
from typing_extensions import TypeAliasType

from torchrec_mtl.argument_types import check_fields, check_type, checked
from torchrec_mtl.errors import InputError

T = TypeVar("T")


class Pair(NamedTuple):
    first: float
    second: float


class Factory(Protocol):
    def __call__(self, size: int) -> list: ...


class Named(Protocol):
    def name(self) -> str: ...


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -3, np.int64(3)], [3.0, True, "3", None, [3]]),
        (float, [0, 0.5, float("nan"), np.float32(1)], [False, "0.5", 1j, None]),
        (bool, [True, False], [1, "yes", None]),
        (str, ["", "a"], [b"a", 3, ["a"]]),
        (int | None, [3, None], [3.5, "none"]),
        (Sequence[int], [[], [1], (1, 2), np.arange(3)], ["12", [1, "2"], 3, {1: 2}, [True]]),
        (Sequence[str], [["a"], ()], ["a", [3]]),
        (tuple[float, float], [(1, 2), [1.0, 2.0], Pair(1, 2)], [(1,), (1, 2, 3), "ab", (1, "2")]),
        (Mapping[str, int], [{}, {"a": 1}], [{"a": "1"}, {1: 1}, [("a", 1)]]),
        (Literal["run"], ["run", "walk"], [3, None, ["run"]]),
        (Pair | tuple[float, float] | Literal["run"], [Pair(1, 2), (1, 2), "run"], [3, (1,), None]),
        (Callable[..., float], [len, int], [3, "len"]),
        (Factory, [list], [3, []]),
        (Named, [type("Any", (), {"name": len})], [[], 3]),
        (Any, [3, None], []),
        (TypeAliasType("Sizes", Sequence[int] | None), [[1], None], [["a"], 3]),
        (TypeAliasType("Rows", Sequence[T], type_params=(T,))[int], [[1]], [3]),
        (ArrayLike, [[1, 2], np.ones(3), 3.0], []),
    ],
    ids=str,
)
def test_what_is_of_a_type(annotation, right, wrong):
    for value in right:
        check_type("argument", value, annotation)
    for value in wrong:
        with pytest.raises(InputError, match=r"^`argument` \(.+\) must be (of type )?.+"):
            check_type("argument", value, annotation)


def test_a_checked_function_keeps_its_name_its_signature_and_pythons_own_errors():
    @checked
    def scale(size: int, *others: int, factor: float = 2.0) -> float:
        """Doubles."""
        return factor * sum([size, *others])

    assert (scale.__name__, scale.__doc__) == ("scale", "Doubles.")
    assert scale(3, 4, factor=1) == 7
    for call in ([], [1, 2, 3]):
        with pytest.raises((TypeError, InputError)):
            scale(*call, unknown=3)
    with pytest.raises(InputError, match=r"`others` \(='4'\) must be of type int"):
        scale(3, "4")
    with pytest.raises(InputError, match=r"`factor` \(=None\) must be of type float"):
        scale(3, factor=None)


def test_the_fields_of_a_record_are_of_their_types():
    @dataclass
    class Record:
        size: int
        name: str = "a"

        def __post_init__(self):
            check_fields(self)

    Record(3)
    with pytest.raises(InputError, match=r"`name` \(=3\) must be of type str"):
        Record(3, 3)


def test_a_long_value_or_an_object_is_not_printed_whole():
    with pytest.raises(InputError, match=r"^`size` \(=.{1,60}\) must be of type int$"):
        check_type("size", "x" * 1000, int)
    with pytest.raises(InputError, match=r"^`size` \(a ndarray\) must be of type int$"):
        check_type("size", np.arange(1000), int)
