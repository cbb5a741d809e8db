"""Every public callable with wrong arguments of every kind: it does what it says, or refuses in one sentence.

`public` finds the callables, `cases` has right arguments and what is right for each, `kinds` makes an argument wrong,
and `cell` judges one draw. A cell is a callable and a kind. ``python -m tests.fuzz.coverage`` writes ``coverage.csv``.
"""
