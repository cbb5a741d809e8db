"""Messages of other libraries in every run, about which a user can do nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Leaves out what torch says about the future to TorchRec, and to its batches when they are made.

    Example::

        >>> quiet_libraries()
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|torchrec)\.")
    # TorchRec 1.6 asks torch for the device of a process group
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torchrec\.distributed\.types")
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_not_of_batches)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Within it, nothing is logged below a warning: fbgemm logs every file that it loads."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(level)


def _is_not_of_batches(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("is_fx_tracing will return true for both")
