"""The whole state of a run on disk, through `torch.distributed.checkpoint`: saved and loaded under any sharding.

A checkpoint is a folder ``step_<n>`` with the tensors and ``manifest.json``, which holds the rest of the state and the
size and SHA-256 of every file. It is written under another name and renamed at the end, so a folder with a checkpoint's
name is whole. A file that was changed afterwards is refused.
"""

from torchrec_mtl.training.checkpoint.changed_rows import ChangedRows, read_changed_rows, save_changed_rows
from torchrec_mtl.training.checkpoint.checkpointer import Checkpointer
from torchrec_mtl.training.checkpoint.manifest import best_checkpoint, checkpoint_of, checkpoints, read_manifest, verify
from torchrec_mtl.training.checkpoint.reading import load_weights

__all__ = [
    "ChangedRows",
    "Checkpointer",
    "best_checkpoint",
    "checkpoint_of",
    "checkpoints",
    "load_weights",
    "read_changed_rows",
    "read_manifest",
    "save_changed_rows",
    "verify",
]
