"""What parameters were called when the golden values were written."""

import re

RENAMED = {  # a pattern of the present name: the former one
    r"^model\.features\.(\d+)\.embedding_bag_collection\.": r"model.sparse_arch.\1.embedding_bag_collection.",
    r"^model\.features\.(\d+)\.dense_arch\.": r"model.dense_arch.\1.mlp.",
    r"^model\.features\.embedding_bag_collection\.": "model.sparse_arch.embedding_bag_collection.",
    r"^model\.features\.dense_arch\.": "model.dense_arch.mlp.",
    r"^model\.over_arch\.extraction\.": "model.over_arch.",
}


def old_name(name: str) -> str:
    """The former name of a parameter of a `MultiTaskTrain`.

    Example::

        >>> old_name("model.features.dense_arch._mlp.0._linear.bias")
        'model.dense_arch.mlp._mlp.0._linear.bias'
    """
    for pattern, former in RENAMED.items():
        name = re.sub(pattern, former, name)
    return name
