"""Compares systems under one protocol: models x seeds x data sets, one report.

``torchrec-mtl compare --help``.

`protocols` says what is compared, `plan` which runs that takes, `runs` makes one of them, `workers` makes them in
parallel, `efficiency` times the models, `summary` sums up, `tables`, `figures` and `html` show.
"""
