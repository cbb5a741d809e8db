"""Reads `torch.distributed.checkpoint` files without running code that they may hold.

torch's own reader unpickles the metadata, and any object that is not a tensor. Here the metadata may name only the
classes that describe tensors, and everything else is read with torch's ``weights_only``.
"""

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from torchrec_mtl.errors import InputError
from torchrec_mtl.training.checkpoint.manifest import verify

_ALLOWED = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


def _enum_member(enum: Any, name: str) -> Any:
    """Stands in for `getattr`, with which the first releases of Python 3.11 pickle members of enumerations."""
    if not (isinstance(enum, type) and issubclass(enum, Enum)):
        raise pickle.UnpicklingError(f"names {name!r} of {enum!r}, which describes no tensor")
    return enum[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if module == "pathlib._local":  # where Python 3.13, and no other, has the classes of pathlib
            module = "pathlib"
        if name in _ALLOWED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which describes no tensor")


class TensorReader(FileSystemReader):
    """Reads metadata that names only descriptions of tensors.

    Raises:
        InputError: if the metadata is unreadable or names anything else.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the checkpoint, or of one of its ranks."""
        file = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, OSError) as error:
            raise InputError(f"{file}: must be the metadata of a checkpoint, but {error}") from error
        if not isinstance(metadata, Metadata):
            raise InputError(f"{file}: must be the metadata of a checkpoint, but is a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorPlanner(DefaultLoadPlanner):
    """Loads tensors and refuses pickled objects."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuses a pickled object."""
        raise InputError(f"`{read_item.dest_index.fqn}` must be a tensor, but the checkpoint holds a pickled object")


def load_weights(model: nn.Module, checkpoint: Path, group: dist.ProcessGroup | None = None) -> None:
    """Loads the weights of a checkpoint into ``model``, whatever the sharding of the two.

    Args:
        model: `MultiTaskTrain` with the same parameters as the one that was saved, distributed or not.
        checkpoint: folder written by `Checkpointer`.
        group: ranks that load; the default group by default.

    Raises:
        InputError: if a file is damaged, or the checkpoint does not fit the model.
    """
    verify(checkpoint, group)
    state = {"model": model.state_dict()}
    read_tensors(state, checkpoint, group)
    model.load_state_dict(state["model"])


def read_tensors(state: dict[str, Any], checkpoint: Path, group: dist.ProcessGroup | None) -> None:
    reader = TensorReader(checkpoint)
    try:
        dcp.load(
            state,
            storage_reader=reader,
            planner=TensorPlanner(),
            process_group=group,
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        reader.read_metadata()  # of its errors torch 2.11 tells nothing
        causes = "; ".join(sorted({" ".join(str(cause).split()) for cause, _ in error.failures.values()}))
        raise InputError(f"{checkpoint}: must fit the model and its optimizer, but {causes}") from error
