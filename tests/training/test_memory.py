"""Tables that are larger than the memory."""

import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from torchrec_mtl.errors import InputError
from torchrec_mtl.training.config import TABLE_OPTIMIZERS, TableConfig, TrainingConfig
from torchrec_mtl.training.memory import host_memory, table_bytes
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding

CPU = torch.device("cpu")


def _collection(num_embeddings: int) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", feature_names=[name], num_embeddings=rows, embedding_dim=16)
        for name, rows in (("small", 10), ("large", num_embeddings))
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("meta"))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_table_larger_than_the_memory_is_refused_before_it_is_allocated(optimizer):
    """By one row in a hundred; half of it is planned."""
    config = TrainingConfig(table=TableConfig(optimizer))
    of_row = table_bytes(_collection(1).embedding_bag_configs()[1], optimizer)
    rows = host_memory() // of_row
    with process_group(CPU):
        with pytest.raises(
            InputError, match=rf"^`num_embeddings` \(={rows * 101 // 100}\) of t_large needs .* GB with"
        ):
            plan_sharding(torch.nn.Sequential(_collection(rows * 101 // 100)), config, CPU)
        plan_sharding(torch.nn.Sequential(_collection(rows // 2)), config, CPU)


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_the_bytes_of_a_table_are_those_that_a_run_has(optimizer):
    """Four for each value of the table and of its optimizer's states."""
    states = {"sgd": 0, "adagrad": 16, "rowwise_adagrad": 1, "adam": 32, "sparse_adam": 32, "rowwise_adam": 17}
    assert table_bytes(_collection(1000).embedding_bag_configs()[1], optimizer) == 4000 * (16 + states[optimizer])
