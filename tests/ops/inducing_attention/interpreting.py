"""Makes Triton's interpreter faster for tests."""

from typing import Any

import pytest
import triton.language as tl
from triton.runtime import interpreter


def patch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves the interpreter's time.

    At every call of a function inside a kernel, the interpreter searches Triton's language for what it must replace,
    although it has replaced it before. This checks one name first, and skips the search if that is replaced already.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        languages = [x for x in (tl, tl.core) if any(x is value for value in self.fn.__globals__.values())]
        if any(tl.core.is_builtin(language.load) for language in languages):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
