"""Our over arch in your model: BPCM's over arch on your own features, in your own training loop.

python examples/over_arch_in_own_model.py
"""

import torch
from random_funnel import FEATURES, NUM_DENSE, TASKS, batches, tables
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl.losses import CalibratedLoss
from torchrec_mtl.models import BPCMArch

EMBEDDING_DIM = 8


class YourModel(nn.Module):
    """Any module below can make the field embeddings ``[B, F, D]``; here, tables and one field of dense features."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_bag_collection = EmbeddingBagCollection(tables=tables(EMBEDDING_DIM))
        self.dense_arch = nn.Sequential(nn.Linear(NUM_DENSE, EMBEDDING_DIM), nn.LayerNorm(EMBEDDING_DIM))
        self.over_arch = BPCMArch(len(FEATURES) + 1, EMBEDDING_DIM, TASKS)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        embeddings = self.embedding_bag_collection(sparse_features).to_dict()
        fields = [*(embeddings[feature] for feature in FEATURES), self.dense_arch(dense_features)]
        return self.over_arch(torch.stack(fields, dim=1))


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    model, loss_function = YourModel(), CalibratedLoss(TASKS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step, batch in enumerate(batches(steps, batch_size=512)):
        logits = model(batch.dense_features, batch.sparse_features)
        loss = loss_function(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
