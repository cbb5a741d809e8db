"""What a package is: its files with their hashes, and everything that a caller must know."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import digest, read_json, to_json, write_whole
from torchrec_mtl.ops import library
from torchrec_mtl.tasks import TaskForest

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.pt2"
CANDIDATES_FILE = "candidates.pt2"
GOLDEN_FILE = "golden.npz"
KERNELS_FILE = "kernels.so"
FORMAT_VERSION = 2
PROCESSORS = {march: has for has, march in library.ARCHITECTURES.items()}  # by PyTorch's name of what they have


@dataclass(frozen=True)
class Manifest:
    """The description of a package.

    Args:
        tasks: tasks, in the order of the columns of scores.
        keys: keys of the ids, in their order.
        num_embeddings: number of ids of each key.
        unknown_rows: row for ids that a table does not have, by key; ids of other keys are refused.
        num_dense: number of dense columns.
        is_weighted: whether ids have weights.
        table_type: type of the tables' rows.
        calibrated: whether the probabilities are calibrated.
        march: processors that the package is for.
        torch: version of PyTorch that compiled it, and that must load it.
        num_rows_files: number of files with rows of tables.
        tolerance: largest difference of the golden batch's scores.
        user_keys: keys of a user's ids, if the package scores the candidates of one user.
        files: SHA-256 of each file.
    """

    tasks: TaskForest
    keys: tuple[str, ...]
    num_embeddings: tuple[int, ...]
    unknown_rows: Mapping[str, int]
    num_dense: int
    is_weighted: bool
    table_type: str
    calibrated: bool
    march: str
    torch: str
    num_rows_files: int
    tolerance: float
    user_keys: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def save(self, folder: Path) -> None:
        """Writes ``manifest.json`` with the hashes of all other files in ``folder``."""
        files = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE}
        content = {"version": FORMAT_VERSION, **asdict(self), "tasks": self.tasks.to_json(), "files": files}
        write_whole(folder / MANIFEST_FILE, to_json(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads and checks the manifest of a package, and the hashes of its files; runs nothing of it.

        Raises:
            InputError: if a file is missing, was changed or is not in the manifest; or the package is of another
                version, for another PyTorch or for a processor with more instructions than this one.
        """
        file = folder / MANIFEST_FILE
        if not file.is_file():
            raise InputError(f"{folder}: must be the folder of a package, but holds no {MANIFEST_FILE}")
        content = read_json(file)
        if content.get("version") != FORMAT_VERSION:
            raise InputError(
                f"{file}: `version` (={content.get('version')!r}) must be {FORMAT_VERSION}: export it again"
            )
        try:
            values: dict[str, Any] = {each.name: content[each.name] for each in fields(cls)}
            values["tasks"] = TaskForest.from_json(values["tasks"])
            manifest = cls(**values)
            manifest._check_files(folder)
        except KeyError as error:
            raise InputError(f"{file}: key {error} is missing") from error
        except TypeError as error:
            raise InputError(f"{file}: a value is of the wrong kind ({error})") from error
        manifest._check_machine(folder)
        return manifest

    def _check_files(self, folder: Path) -> None:
        for name, sha256 in self.files.items():
            if "/" in name or not (folder / name).is_file():
                raise InputError(f"{folder / name}: is missing, or is no name of a file of a package")
            if digest(folder / name) != sha256:
                raise InputError(f"{folder / name}: was changed since the package was made")
        needed = {
            MODEL_FILE,
            GOLDEN_FILE,
            *([CANDIDATES_FILE] if self.user_keys else []),
            *(rows_file(number) for number in range(self.num_rows_files)),
        }
        if missing := needed - set(self.files):
            raise InputError(f"{folder / MANIFEST_FILE}: must name {min(missing)!r} among its files")

    def _check_machine(self, folder: Path) -> None:
        version = torch.__version__.partition("+")[0]
        if self.torch.partition("+")[0] != version:
            raise InputError(f"{folder}: is for PyTorch {self.torch}, not {version}: export it again")
        has = torch.backends.cpu.get_cpu_capability()
        if has not in supporting(self.march):
            raise InputError(
                f"{folder}: is for processors of {self.march}, but this one has {has}: export it for this one"
            )


def supporting(march: str) -> list[str]:
    """PyTorch's names of what processors that run ``march`` have."""
    names = list(PROCESSORS.values())
    return names[list(PROCESSORS).index(march) :] if march in PROCESSORS else []


def this_processor() -> str:
    """The most that this machine's processor has, of `PROCESSORS`."""
    march = library.this_processor()
    return march if march in PROCESSORS else next(iter(PROCESSORS))


def rows_file(number: int) -> str:
    """Name of the file with the rows of a collection of tables."""
    return f"rows_{number}.npy"
