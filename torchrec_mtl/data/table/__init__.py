"""Any table in: raw columns, declared field by field, encoded as a prepared data set and for prediction alike."""

from torchrec_mtl.data.table.any_id import AnyId
from torchrec_mtl.data.table.declaration import ByColumn, ByHash, ByTime, Table
from torchrec_mtl.data.table.delays import Delay
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fields import AgeInDays
from torchrec_mtl.data.table.ids import Hashed, History, Integers, TimeOf, Vocabulary
from torchrec_mtl.data.table.numbers import Bins, Dense, LogRound
from torchrec_mtl.data.table.prepare import prepare_table

__all__ = [
    "AgeInDays",
    "AnyId",
    "Bins",
    "ByColumn",
    "ByHash",
    "ByTime",
    "Delay",
    "Dense",
    "Hashed",
    "History",
    "Integers",
    "LogRound",
    "Table",
    "TableEncoder",
    "TimeOf",
    "Vocabulary",
    "prepare_table",
]
