"""The package that is served, and how another takes its place.

The service looks each second at the path that it was started with, usually a link ``current``. That is what a restart
reads too, so both always mean the same package; it needs no request, signal or right of the one who deploys beyond
writing a link, and `ln` or a volume of Kubernetes changes links at once, not file by file.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import digest
from torchrec_mtl.inference.package import load_package
from torchrec_mtl.inference.package.manifest import MANIFEST_FILE

LOG = logging.getLogger("uvicorn.error")
SECONDS = 1.0  # between two looks


class Served:
    """A package, loaded and warmed, with what a request must bring for it.

    Attributes:
        package: the package.
        id: the first digits of its manifest's hash, which says what is in every file.
        columns: columns of a row.
        interface: what must stay the same while a service runs: what rows bring, and what is answered.
    """

    def __init__(self, folder: Path) -> None:
        self.package = load_package(folder)  # scores the golden batch, which warms the compiled code
        self.name, self.id = folder.name, digest(folder / MANIFEST_FILE)[:12]
        schema, encoder = self.package.schema, self.package.encoder
        if schema is None:
            raise InputError(f"{folder}: must have a schema, to be served: make it with `torchrec-mtl export`")
        tasks = self.package.manifest.tasks
        if encoder is None:
            self.columns = (*schema.field_names, *schema.id_weight_columns, *schema.dense)
            lists: Any = {each.name for each in schema.fields if each.multi_valued}
        else:
            self.columns, lists = encoder.columns, (encoder.multi_valued, dict(encoder.value_types))
        self.interface = {
            "tasks": (tasks.names, tasks.parents),
            "columns": (encoder is None, set(self.columns), lists),
        }


class Exchange:
    """Keeps the newest good package of a path.

    Args:
        path: a package's folder, or a link to one.

    Attributes:
        served: what is served.
        refused: name of the package that was refused, and why; None if the path has what is served.
        num_taken, num_refused: of the packages after the first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.refused, self.num_taken, self.num_refused = path, dict[str, str](), 0, 0
        self._seen = self._state()
        self.served = Served(self._folder())
        self._taken = self._seen

    async def watch(self, warm: Callable[[Served], object]) -> None:
        """Looks until it is cancelled; ``warm`` is called in the thread with a package before it is taken."""
        while True:
            await asyncio.sleep(SECONDS)
            state = await asyncio.to_thread(self._state)
            if state == self._seen:
                continue
            self._seen = state
            if state == self._taken:  # it is back
                self.refused = {}
                continue
            folder = self._folder()
            try:
                served = await asyncio.to_thread(self._load, folder, warm)
            except Exception as error:
                if not isinstance(error, InputError):
                    LOG.exception("%s cannot be loaded", folder)
                self.num_refused += 1
                self.refused = {"name": folder.name, "reason": str(error) or type(error).__name__}
                LOG.error("refused: %s; %s is still served", self.refused["reason"], self.served.name)
            else:
                LOG.info("taken: %s (%s) in place of %s", served.name, served.id, self.served.name)
                self.served, self._taken, self.refused = served, state, {}  # batches under way keep the old one
                self.num_taken += 1

    def _load(self, folder: Path, warm: Callable[[Served], object]) -> Served:
        served = Served(folder)
        for what, value in served.interface.items():
            if value != self.served.interface[what]:
                raise InputError(f"{folder}: must have the {what} of the package that is served, {self.served.name}")
        warm(served)
        return served

    def _folder(self) -> Path:
        return Path(os.path.realpath(self.path))  # which raises nothing, whatever the link leads to

    def _state(self) -> object:
        """What changes when the path is another folder, or a file in it is."""
        folder = self._folder()
        try:
            files = sorted(folder.iterdir())
            return folder, [(each.name, each.stat().st_ino, each.stat().st_mtime_ns) for each in files]
        except OSError as error:
            return folder, error.errno
