"""A first declaration of a table, guessed from its rows, to be edited."""

from torchrec_mtl.data.table.infer.draft import infer_table

__all__ = ["infer_table"]
