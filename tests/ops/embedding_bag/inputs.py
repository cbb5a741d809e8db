"""Random bags for tables of random sizes."""

import torch
from torch import Tensor


def random_bags(
    seed: int,
    rows: tuple[int, ...] = (7, 1, 50),
    widths: tuple[int, ...] = (4, 33, 20),
    batch: int = 5,
    longest: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict[str, object]:
    """Arguments of the lookup: fields that share tables and keys, keys without a field, empty bags, repeated ids."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    num_fields = 2 * len(rows)
    table_of_field = [*range(len(rows)), *draw(len(rows), len(rows)).tolist()]
    key_of_field = (torch.randperm(num_fields + 1, generator=generator)[:num_fields]).tolist()
    lengths = draw(longest + 1, num_fields + 1, batch)
    ids = []
    for key in range(num_fields + 1):
        high = rows[table_of_field[key_of_field.index(key)]] if key in key_of_field else 10**9
        ids.append(draw(high, int(lengths[key].sum())))
    return {
        "tables": [
            torch.randn(n, width, generator=generator, dtype=dtype) for n, width in zip(rows, widths, strict=True)
        ],
        "table_of_field": table_of_field,
        "key_of_field": key_of_field,
        "mean_of_field": [bool(draw(2, 1)) for _ in range(num_fields)],
        "ids": torch.cat(ids),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]),
        "batch": batch,
        "weights": torch.rand(sum(map(len, ids)), generator=generator, dtype=dtype),
    }
