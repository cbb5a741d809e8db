"""Compares systems under one protocol: models x seeds x data sets, one report.

``torchrec-mtl compare --help``.

`protocols` says what is compared and `plan` which runs that needs. `runs` makes one run, `workers` makes them in
parallel, and `efficiency` times the models. `summary` computes what `tables`, `figures` and `html` show, and `output`
writes the files.
"""
