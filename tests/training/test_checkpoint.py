"""Checkpoints: gone on from as if nothing had happened, on any number of ranks; refused where damaged."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import TensorProperties

from tests import processes
from tests.jobs import funnel
from tests.training import ranks
from torchrec_mtl.errors import InputError
from torchrec_mtl.training.checkpoint import Checkpointer, best_checkpoint, checkpoints, load_weights, manifest
from torchrec_mtl.training.checkpoint.reading import _MetadataUnpickler
from torchrec_mtl.training.config import CheckpointConfig, OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.process_group import process_group

TABLES = {name: TableConfig(name, 0.05) for name in ("rowwise_adagrad", "adagrad", "sgd", "adam", "sparse_adam")}
TABLES["fp16"] = TableConfig("rowwise_adagrad", 0.05, precision="fp16")


def configure(table="rowwise_adagrad", **options) -> TrainingConfig:
    return TrainingConfig(
        batch_size=32,
        max_epochs=2,
        evaluations_per_epoch=2,
        optimizer=OptimizerConfig(0.01),
        table=TABLES[table],
        **{"learning_rate_decay": "linear", **options},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny", train=321, valid=101)


@pytest.fixture
def _group():
    with process_group(ranks.CPU):
        yield


def _in_two_goes(tables: list[str], data: Path, folder: Path, micro_batches: int = 1) -> None:
    """Whole, and stopped after 8 of 22 steps, which is between two evaluations, then gone on with."""
    for table in tables:
        config = configure(table, micro_batches=micro_batches)
        _, whole = ranks.train(config, data, folder / table / "whole", dropout=0.3)
        stop_after = 8 * micro_batches
        result, _ = ranks.train(config, data, folder / table / "parts", stop_after=stop_after, dropout=0.3)
        assert (result.stopped, result.step) == (True, 8)
        result, parts = ranks.train(config, data, folder / table / "parts", dropout=0.3)
        assert (result.stopped, result.step) == (False, 22)
        for name, expected in whole.state_dict().items():
            actual = parts.state_dict()[name]
            if hasattr(expected, "local_shards"):
                pairs = zip(actual.local_shards(), expected.local_shards(), strict=True)
                assert all(torch.equal(a.tensor, b.tensor) for a, b in pairs), name
            else:
                assert torch.equal(actual, expected), name


def check_histories(folder: Path) -> None:
    whole, parts = ranks.history(folder / "whole"), ranks.history(folder / "parts")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        tolerance = 1e-12 if key[-1] == "loss" else 0.0  # a sum in two parts
        assert parts[key] == pytest.approx(value, abs=tolerance, rel=0, nan_ok=True), key


@pytest.mark.usefixtures("_group", "kernel")
def test_a_run_goes_on_bit_for_bit(data, tmp_path):
    _in_two_goes(list(TABLES), data, tmp_path)
    for table in TABLES:
        check_histories(tmp_path / table)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("world_size", "micro_batches"),
    [(2, 1), *(pytest.param(*case, marks=pytest.mark.verify) for case in [(2, 2), (4, 1)])],
)
def test_a_run_goes_on_bit_for_bit_on_several_ranks(data, tmp_path, world_size, micro_batches):
    """Though replicas lay out their gradients anew after the first pass of a process, which is another one then."""
    tables = list(TABLES)
    processes.run(_in_two_goes, world_size, tables, data, tmp_path, micro_batches)
    for table in tables:
        check_histories(tmp_path / table)


def _begin(config: TrainingConfig, data: Path, folder: Path) -> None:
    ranks.train(config, data, folder, stop_after=8)


def _copy_and_save(config: TrainingConfig, data: Path, folders: list[Path]) -> None:
    """Loads on these ranks and saves unchanged."""
    import torch.distributed as dist

    from torchrec_mtl.training.checkpoint import Checkpointer
    from torchrec_mtl.training.distributed import distribute

    model, optimizer = distribute(ranks.build(config), config, ranks.CPU)
    group = dist.new_group(backend="gloo")
    state = Checkpointer(folders[0], group).load(checkpoints(folders[0])[-1], model, optimizer)
    Checkpointer(folders[1], group).save(8, model, optimizer, state, None)


def _reshard(config: TrainingConfig, data: Path, folder: Path, name: str) -> None:
    again = folder / "again" / name
    _copy_and_save(config, data, [folder / "checkpoints", again])
    own = folder.parent / f"gone-on-{name}"
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder, own)
    torch.distributed.barrier()
    ranks.train(config, data, own)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_values_on_another_number_of_ranks(data, tmp_path):
    config = configure(tables={"t_item": {"sharding": "row_wise"}})
    processes.run(_train_whole, 1, config, data, tmp_path / "whole")
    whole = ranks.history(tmp_path / "whole")
    for before, after in ((2, 1), (2, 4), (4, 2)):
        begun = tmp_path / f"from-{before}"
        if not begun.exists():
            processes.run(_begin, before, config, data, begun)
        name = f"{before}-to-{after}"
        processes.run(_reshard, after, config, data, begun, name)
        (saved,), (again,) = checkpoints(begun / "checkpoints")[-1:], checkpoints(begun / "again" / name)
        expected, actual = ranks.contents(saved), ranks.contents(again)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(actual[key], value), (name, key)
        ranks.check_alike(ranks.history(tmp_path / f"gone-on-{name}"), whole)


def _train_whole(config: TrainingConfig, data: Path, folder: Path) -> None:
    ranks.train(config, data, folder)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run with a checkpoint at every other step, the last three kept."""
    folder = tmp_path_factory.mktemp("finished")
    with process_group(ranks.CPU):
        ranks.train(configure(checkpoint=CheckpointConfig(interval=2, keep_last=3)), data, folder)
    return folder


def test_the_last_and_the_best_are_kept(finished):
    kept = checkpoints(finished / "checkpoints")
    steps = [manifest.read_manifest(path)["step"] for path in kept]
    best = manifest.read_manifest(best_checkpoint(finished / "checkpoints"))
    scores = {}
    for (step, _, _, space, metric), value in ranks.history(finished).items():
        if (space, metric) == ("impressions", "auc"):
            scores.setdefault(step, []).append(value)
    means = {step: sum(values) / len(values) for step, values in scores.items()}
    assert best["step"] == max(means, key=means.get)
    assert steps == sorted({best["step"], 18, 20, 22})


@pytest.mark.usefixtures("_group")
def test_writing_in_the_background_changes_nothing(data, finished, tmp_path):
    checkpoint = CheckpointConfig(interval=2, keep_last=3, asynchronous=True)
    ranks.train(configure(checkpoint=checkpoint), data, tmp_path)
    names = [path.name for path in checkpoints(finished / "checkpoints")]
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == names
    for name in names:
        expected, actual = (ranks.contents(folder / "checkpoints" / name) for folder in (finished, tmp_path))
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_weights_load_without_a_process_group(finished):
    model = ranks.build(configure())
    model.to_empty(device="cpu")
    checkpoint = best_checkpoint(finished / "checkpoints")
    load_weights(model, checkpoint)
    saved = ranks.contents(checkpoint)
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])


def _refused_everywhere(folder: Path) -> None:
    with pytest.raises(InputError, match="must be a folder that can be written to"):
        Checkpointer(folder, dist.new_group(backend="gloo"))


def test_a_folder_that_cannot_be_made_stops_all_ranks(tmp_path):
    (tmp_path / "file").touch()
    processes.run(_refused_everywhere, 2, tmp_path / "file" / "checkpoints")


def _files(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.iterdir())


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    """One bit in the middle."""
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_file_is_refused_with_its_name(finished, tmp_path, damage):
    whole = best_checkpoint(finished / "checkpoints")
    model = ranks.build(configure())
    model.to_empty(device="cpu")
    names = _files(whole)
    assert {".metadata", "manifest.json"} < set(names)
    for name in names:
        copy = tmp_path / name / whole.name
        shutil.copytree(whole, copy)
        damage(copy / name)
        named = str(copy) if (name, damage) == ("manifest.json", Path.unlink) else str(copy / name)
        with pytest.raises(InputError, match=f"^{named}: "):
            load_weights(model, copy)


def test_a_manifest_of_another_hand_is_refused(finished, tmp_path):
    """A value changed with care: still JSON, still the same length."""
    copy = tmp_path / "step_000000022"
    shutil.copytree(best_checkpoint(finished / "checkpoints"), copy)
    file = copy / "manifest.json"
    body = json.loads(file.read_text())
    body["score"] += 0.125
    file.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"manifest\.json: was changed since it was written"):
        best_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_one_sentence(tmp_path):
    (tmp_path / "manifest.json").write_text('{"version": 0}')
    with pytest.raises(InputError, match=r"manifest\.json: `version` \(=0\) must be 1: train the run again$"):
        manifest.read_manifest(tmp_path)


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def _sealed(checkpoint: Path) -> None:
    """Makes the manifest fit the files, as somebody would who knows how."""
    body = json.loads((checkpoint / "manifest.json").read_text())
    del body["sha256"]
    for name in body["files"]:
        file = checkpoint / name
        body["files"][name] = {"bytes": file.stat().st_size, "sha256": manifest.digest(file)}
    (checkpoint / "manifest.json").write_text(json.dumps({**body, "sha256": manifest._manifest_digest(body)}))


def test_loading_runs_nothing_that_a_checkpoint_names(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ranks.build(configure())
    model.to_empty(device="cpu")
    metadata, pickled = tmp_path / "a" / "step_1", tmp_path / "b" / "step_1"
    for copy in (metadata, pickled):
        shutil.copytree(best_checkpoint(finished / "checkpoints"), copy)
    (metadata / ".metadata").write_bytes(pickle.dumps(Malicious()))
    _sealed(metadata)
    with pytest.raises(InputError, match=r"\.metadata: must be the metadata of a checkpoint, but names \w+\.system"):
        load_weights(model, metadata)

    (tensors,) = (path for path in pickled.iterdir() if path.suffix == ".distcp")
    torch.save(Malicious(), tensors)
    tensors.write_bytes(tensors.read_bytes().ljust(2**20, b"\0"))
    _sealed(pickled)
    with pytest.raises(InputError, match="must fit the model"):
        load_weights(model, pickled)
    assert not (tmp_path / "executed").exists()


@pytest.mark.usefixtures("_group")
def test_other_data_or_another_model_is_refused(finished, data, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    other = funnel.prepare(tmp_path / "data", train=320, valid=101)
    with pytest.raises(InputError, match=r"step_000000022: `num_rows` \(=320\) must be that of the saved"):
        ranks.train(configure(), other, tmp_path)
    with pytest.raises(InputError, match=r"step_000000022: must fit the model .* but Size mismatch between saved"):
        ranks.train(configure(), data, tmp_path, num_inducing_points=5)


FULL = """
import sys
from pathlib import Path
from tests.training import ranks, test_checkpoint
from torchrec_mtl.errors import TrainingError
from torchrec_mtl.training.config import CheckpointConfig
from torchrec_mtl.training.process_group import process_group

data, folder = map(Path, sys.argv[1:])
config = test_checkpoint.configure(checkpoint=CheckpointConfig(interval=2, keep_last=50))
with process_group(ranks.CPU):
    try:
        ranks.train(config, data, folder)
    except TrainingError as error:
        print("told:", error)
"""


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_checkpoint_before_it_stays(data, tmp_path):
    """On a file system of 1 MB, in a name space of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {disk} && {sys.executable} -c '{FULL}' {data} {disk}"
    mount += f"; ls {disk}/checkpoints; cp -r {disk}/checkpoints {tmp_path}/kept"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mount], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    told = next(line for line in done.stdout.splitlines() if line.startswith("told:"))
    assert "could not be written" in told
    assert "No space left on device" in told
    assert "the checkpoint before it stays" in told
    kept = checkpoints(tmp_path / "kept")
    assert kept
    assert not list((tmp_path / "kept").glob("*.partial"))
    model = ranks.build(configure())
    model.to_empty(device="cpu")
    load_weights(model, kept[-1])


class AnEnum:
    """Pickled as Python 3.11.0 to 3.11.3 pickle members of enumerations: by `getattr`."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_metadata_of_any_python_3_11_is_read_and_getattr_gives_nothing_else():
    encoding = type(TensorProperties().__getstate__()[3])
    member = pickle.dumps(AnEnum(encoding, "TORCH_CONTIGUOUS_FORMAT"))
    assert _MetadataUnpickler(io.BytesIO(member)).load() is encoding.TORCH_CONTIGUOUS_FORMAT
    for owner, name in ((torch.Size, "__class__"), (torch.Size, "mro")):
        with pytest.raises(pickle.UnpicklingError, match="describes no tensor"):
            _MetadataUnpickler(io.BytesIO(pickle.dumps(AnEnum(owner, name)))).load()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_any_python_are_read(module):
    pickled = f"c{module}\nPosixPath\n(Vweights\ntR.".encode()  # as Python 3.13 writes them, and as the others do
    assert _MetadataUnpickler(io.BytesIO(pickled)).load() == Path("weights")


def _spoil_an_older_one(folder: Path) -> list[str]:
    """A damaged manifest, a copy under a later name, and another run's checkpoint; returns what a warning must name."""
    older, newest = checkpoints(folder)[0], checkpoints(folder)[-1]
    for name in ("step_000000002", "step_000000099", "step_000000022 (copy)"):
        shutil.copytree(newest, folder / name)
    flip(folder / "step_000000002" / "manifest.json")
    foreign = shutil.copytree(older, folder / "step_000000098")
    body = json.loads((foreign / "manifest.json").read_text()) | {"step": 98, "run": "another"}
    del body["sha256"]
    (foreign / "manifest.json").write_text(json.dumps({**body, "sha256": manifest._manifest_digest(body)}))
    return ["step_000000002", "step_000000099", "step_000000022 (copy)", "step_000000098"]


@pytest.mark.usefixtures("_group")
def test_damaged_older_checkpoints_and_copies_are_named_and_stop_nothing(data, tmp_path, capsys):
    config = configure(checkpoint=CheckpointConfig(interval=2, keep_last=2))
    ranks.train(config, data, tmp_path, stop_after=16)
    strange = _spoil_an_older_one(tmp_path / "checkpoints")
    result, _ = ranks.train(config, data, tmp_path)
    assert (result.stopped, result.step) == (False, 22)
    said = capsys.readouterr()
    assert "resumes from" in said.out
    assert "step_000000016\n" in said.out
    warnings = [line for line in said.err.splitlines() if line.startswith("warning: ")]
    for name in strange:
        assert (tmp_path / "checkpoints" / name).is_dir()
        assert len([line for line in warnings if f"{name}:" in line or f"{name}/" in line]) >= 1, name


@pytest.mark.usefixtures("_group")
def test_a_damaged_newest_checkpoint_is_refused_by_name(data, tmp_path):
    ranks.train(configure(), data, tmp_path, stop_after=8)
    (newest,) = checkpoints(tmp_path / "checkpoints")[-1:]
    flip(newest / "manifest.json")
    with pytest.raises(InputError, match=f"{newest}/manifest.json: was changed|is damaged"):
        ranks.train(configure(), data, tmp_path)
