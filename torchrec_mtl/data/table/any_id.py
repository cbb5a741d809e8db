"""A field of ids without a vocabulary, whose table gives them rows while the model trains."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.fields import Fitted, IdField
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.ids import checked_range, is_null
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.id_hash import ANY_ID

NO_VALUE = ANY_ID - 1  # id of a missing value


def shown_size(num_embeddings: int) -> str:
    """The number of a field's ids for a reader.

    Example::

        >>> shown_size(1000), shown_size(ANY_ID)
        ('1,000', 'any')
    """
    return "any" if num_embeddings == ANY_ID else f"{num_embeddings:,}"


@dataclass(frozen=True)
class AnyId(IdField):
    """A field whose ids need no vocabulary: they get rows of the table while the model trains, and lose them again.

    An integer from 0 to 2^63 - 3 is its own id, a string has the hash of `torchrec_mtl.data.table.hashes` modulo
    2^63 - 2, and a missing value the id 2^63 - 2. The settings ``zch`` of a run say who gets a row, see
    `torchrec_mtl.modules.ZeroCollisionEmbeddingBagCollection`.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        num_rows: rows of the table, a multiple of the run's ``zch.buckets``; by default the run's ``zch.num_rows``.

    Example::

        >>> AnyId("user").encode(pa.array([7, None, 2**62]), {}).tolist()
        [7, 9223372036854775806, 4611686018427387904]
    """

    _: KW_ONLY
    num_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rows is not None:
            check_at_least(2, **{f"num_rows` of field `{self.name}": self.num_rows})

    def checked(self, values: Values, part: Part, column: str) -> Values:
        if not pa.types.is_integer(values.flat.type):
            return values
        return checked_range(values, part, column, NO_VALUE, "2^63 - 2", missing=True)

    def num_embeddings(self, fitted: Fitted) -> int:
        return ANY_ID

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        if pa.types.is_integer(values.type):
            ids = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            ids = (stable_hashes(values) % np.uint64(NO_VALUE)).astype(np.int64)
        return np.where(is_null(values), NO_VALUE, ids)
