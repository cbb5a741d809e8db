"""The whole state of a run on disk, through `torch.distributed.checkpoint`: sharded as it is, loaded as it will be.

A checkpoint is a folder ``step_<n>`` that holds the tensors and, in ``manifest.json``, the rest of the state with the
size and SHA-256 of every file. It is written beside its place under another name and gets its name in one rename, so a
folder of that name is whole; a file that was changed since is refused.
"""

from torchrec_mtl.training.checkpoint.checkpointer import Checkpointer
from torchrec_mtl.training.checkpoint.manifest import best_checkpoint, checkpoints, read_manifest, verify
from torchrec_mtl.training.checkpoint.reading import load_weights

__all__ = ["Checkpointer", "best_checkpoint", "checkpoints", "load_weights", "read_manifest", "verify"]
