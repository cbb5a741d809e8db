"""Triton's interpreter, made quicker for tests."""

from typing import Any

import pytest
import triton.language as tl
from triton.runtime import interpreter


def spare_patching(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of a function inside a kernel the interpreter looks through Triton's language for what it has to
    replace, and has replaced before. This asks one name of it first, and takes half the time."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        languages = [x for x in (tl, tl.core) if any(x is value for value in self.fn.__globals__.values())]
        if any(tl.core.is_builtin(language.load) for language in languages):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
