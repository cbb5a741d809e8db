"""A package scores as the model that it was made of, and nothing of it runs before its hashes are checked."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.export import Dim
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from tests import VERIFY
from tests.support import TASKS, batch, build
from torchrec_mtl import TaskChain, load_run
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import Field, MultiTaskBatch, Schema, build_once
from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.data.writer import write_parquet
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference import Calibration
from torchrec_mtl.inference.package import export_package, load_package
from torchrec_mtl.inference.package.graph import InferenceGraph, example
from torchrec_mtl.inference.package.load import Arguments, arguments_of
from torchrec_mtl.inference.package.manifest import MODEL_FILE, Manifest, this_processor
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS

ERROR = {"fp32": 1e-6, "fp16": 1e-3, "int8": 2e-2, "int4": 1e-1}
every_system = pytest.mark.parametrize("name", SYSTEMS)


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def system(name):
    dimension = {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}
    return build(name, (4, 8, 4, 4), **dimension).eval()


def run(graph, rows):
    given = arguments_of(rows, graph.keys, graph.is_weighted)
    return graph(given.dense_features, given.values, given.lengths, given.weights, graph.rows)


def as_batch(rows):
    return MultiTaskBatch(rows.dense_features, rows.sparse_features, rows.labels)


@every_system
@pytest.mark.parametrize("table_type", ERROR)
def test_a_graph_scores_as_the_model(name, table_type):
    model, rows = system(name), as_batch(batch(9))
    expected = model(rows.dense_features, rows.sparse_features).sigmoid()
    graph = InferenceGraph(model, TASKS, table_type).eval()
    assert (run(graph, rows) - expected).abs().max() <= ERROR[table_type]


@pytest.mark.parametrize("name", SYSTEMS if VERIFY else ["single_task", "tafe"])
def test_every_graph_is_exported_for_any_batch(name):
    """No module is hidden from the tracing."""
    graph = InferenceGraph(system(name), TASKS, "int8").eval()
    size, ids = Dim("batch", min=1, max=2**20), Dim("num_values", min=0, max=2**31)
    rows = [{0: Dim(f"bytes_{n}", min=1, max=2**40)} for n in range(len(graph.rows))]
    program = torch.export.export(
        graph, example(graph, 37), dynamic_shapes=({0: size}, {0: ids}, {1: size}, None, rows), strict=False
    )
    exported = program.module()
    for num_rows in (1, 2, 4, 50):
        given = as_batch(batch(num_rows))
        arguments = arguments_of(given, graph.keys, False)
        found = exported(arguments.dense_features, arguments.values, arguments.lengths, None, graph.rows)
        torch.testing.assert_close(found, run(graph, given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["means", "weights"])
def test_shared_tables_means_and_weights_of_ids(kind):
    """Two features of one table; PyTorch has no weighted means."""
    pooling = PoolingType.MEAN if kind == "means" else PoolingType.SUM
    item = EmbeddingBagConfig(
        name="item", embedding_dim=4, num_embeddings=9, feature_names=["item", "recent"], pooling=pooling
    )
    user = EmbeddingBagConfig(name="user", embedding_dim=8, num_embeddings=5, feature_names=["user"])
    collection = EmbeddingBagCollection(tables=[item, user], is_weighted=kind == "weights")
    model = SharedBottom(FeatureArch(collection, dense_in_features=1), TASKS).eval()
    lengths, ids = torch.tensor([1, 1, 1, 3, 0, 2, 1, 1, 1]), torch.tensor([8, 0, 3, 1, 2, 8, 4, 4, 4, 0, 1])
    weights = torch.rand(len(ids)) if kind == "weights" else None
    sparse = KeyedJaggedTensor(["item", "recent", "user"], ids, weights, lengths)
    rows = MultiTaskBatch(torch.randn(3, 1), sparse, torch.zeros(3, len(TASKS)))
    expected = model(rows.dense_features, sparse).sigmoid()
    torch.testing.assert_close(run(InferenceGraph(model, TASKS).eval(), rows), expected)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_calibration_is_in_the_graph(method):
    maps = {
        "isotonic": {"x": [-2.0, -0.5, 0.5, 3.0], "y": [0.1, 0.1, 0.6, 0.9]},
        "platt": {"slope": 0.7, "intercept": -0.2},
    }
    calibration = Calibration(TASKS, method, dict.fromkeys(TASKS, maps[method]))
    model, rows = system("mmoe"), as_batch(batch(50))
    expected = calibration.apply(model(rows.dense_features, rows.sparse_features).numpy())
    found = run(InferenceGraph(model, TASKS, calibration=calibration).eval(), rows)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_an_id_without_a_table_row_is_refused_or_named():
    model, rows = system("shared_bottom"), as_batch(batch(9))
    graph = InferenceGraph(model, TASKS, "int8", {"f1": 2}).eval()
    given = arguments_of(rows, graph.keys, False)
    second = int(given.lengths[0].sum())
    for wrong in (-1, 2**40, int(graph.sizes[1])):
        named, known = given.values.clone(), given.values.clone()
        named[second], known[second] = wrong, 2
        found, expected = (graph(given.dense_features, x, given.lengths, None, graph.rows) for x in (named, known))
        torch.testing.assert_close(found, expected)
    for wrong in (-1, 2**40, int(graph.sizes[0])):
        refused = given.values.clone()
        refused[0] = wrong
        with pytest.raises(RuntimeError, match="out of bounds"):
            graph(given.dense_features, refused, given.lengths, None, graph.rows)


SCHEMA = Schema(
    "shop",
    [Field("item", 9), Field("tags", 5, multi_valued=True, unknown_row=0)],
    TaskChain(["click", "buy"]),
    ["price"],
)
ROWS = [{"item": n % 9, "tags": [n % 5] * (n % 3), "price": n / 10} for n in range(20)]


def prepare(folder):
    def write(partial):
        rng = np.random.default_rng(0)
        for split, num_rows in (("train", 600), ("valid", 200), ("test", 100)):
            labels = (rng.random((num_rows, 2)) < 0.5).cumprod(axis=1)
            columns = {"item": rng.integers(0, 9, num_rows), "price": rng.normal(size=num_rows)}
            columns |= {"tags": [rng.integers(0, 5, n).tolist() for n in rng.integers(0, 3, num_rows)]}
            columns |= {"click": labels[:, 0], "buy": labels[:, 1]}
            write_parquet(pl.DataFrame(columns), partial / f"{split}.parquet")
        return SCHEMA

    return str(build_once(folder, write))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A trained and calibrated run, and its package, compiled once for all tests."""
    folder = tmp_path_factory.mktemp("shop")
    data, run = prepare(folder / "data"), str(folder / "run")
    options = ["--models", "shared_bottom", "--output", str(folder), "--name", "run", "training.batch_size=200"]
    assert main(["train", "--dataset", data, *options]) == 0
    assert main(["calibrate", run, "--dataset", data, "--method", "platt"]) == 0
    output = folder / "package"
    options = ["--table-type", "fp32", "--user-fields", "tags"]
    assert main(["export", run, "--dataset", data, "--output", str(output), *options]) == 0
    return load_run(run).predictor(), output


@pytest.fixture
def package(shop, tmp_path):
    shutil.copytree(shop[1], tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.slow
def test_a_package_scores_as_the_model(shop):
    predictor, folder = shop
    assert predictor.calibration is not None
    loaded = load_package(folder)
    for rows in (ROWS, ROWS[:1], ROWS[:2], ROWS * 50):
        found, expected = (each.predict(rows, values={"buy": 3.0}) for each in (loaded, predictor))
        np.testing.assert_allclose(found.marginal, expected.marginal, atol=1e-6)
        np.testing.assert_allclose(found.conditional, expected.conditional, atol=1e-5)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-5)


@pytest.mark.slow
def test_a_package_has_a_reference(shop):
    """Deciles of the validation split's scores, and its ids that no table has, of the fields that take them."""
    predictor, folder = shop
    valid = pl.read_parquet(folder.with_name("data") / "valid.parquet")
    reference, scores = load_package(folder).reference, predictor.predict(valid).marginal
    assert reference.fields == {"tags": FieldCounts(valid["tags"].list.len().sum(), 0, 0, ())}
    for task, name in enumerate(predictor.schema.tasks):
        np.testing.assert_allclose(
            reference.edges[name], np.unique(np.quantile(scores[:, task], np.arange(0.1, 1, 0.1)))
        )
        bins = np.histogram(scores[:, task], [-1, *reference.edges[name], 2])[0]
        assert reference.scores[name] == tuple(bins)


@pytest.mark.slow
def test_the_service_scores_rows_of_ids(shop, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "service"))
    batching, exchange = (importlib.import_module(name) for name in ("batching", "exchange"))
    served = exchange.Served(shop[1])
    scored = batching.score(served, [*ROWS, {**ROWS[0], "tags": [4, 99, -1]}])
    expected = shop[0].predict([*ROWS, {**ROWS[0], "tags": [4, 0, 0]}])
    np.testing.assert_allclose(scored.predictions.marginal, expected.marginal, atol=1e-6)
    assert scored.fields == {"tags": FieldCounts(sum(len(row["tags"]) for row in ROWS) + 3, 0, 2, ())}
    with pytest.raises(InputError, match=r"column 'item', row 0 .*id \(=9\)"):
        batching.score(served, [{**ROWS[0], "item": 9}])
    for name in ("batching", "exchange"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 2, 100])
def test_candidates_score_as_rows_that_repeat_the_user(num_candidates, shop):
    loaded = load_package(shop[1])
    for tags in ([], [1], [2, 2, 10**9]):
        candidates = [{"item": n % 9, "price": n / 10} for n in range(num_candidates)]
        found = loaded.predict_candidates({"tags": tags}, candidates, values={"buy": 3.0})
        expected = loaded.predict([{**row, "tags": tags} for row in candidates], values={"buy": 3.0})
        np.testing.assert_allclose(found.marginal, expected.marginal, atol=1e-6)
        np.testing.assert_allclose(found.conditional, expected.conditional, atol=1e-5)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-5)


@pytest.mark.slow
def test_candidates_that_cannot_be_scored_are_refused(shop):
    loaded = load_package(shop[1])
    candidates = [{"item": 3, "price": 0.5}]
    with pytest.raises(InputError, match="`user` must not have the column 'item', which the candidates have"):
        loaded.predict_candidates({"tags": [1], "item": 3}, candidates)
    with pytest.raises(InputError, match="candidates: column 'tags' is missing"):
        loaded.predict_candidates({"user": 1}, candidates)
    with pytest.raises(InputError, match="candidates: must have at least one row"):
        loaded.predict_candidates({"tags": [1]}, [])
    for tags in ([[1], [2]], [[1], []]):
        rows = [{"item": 3, "price": 0.5, "tags": each} for each in tags]
        with pytest.raises(InputError, match="the field 'tags' must not depend on the candidate"):
            loaded.predict_candidates({"user": 1}, rows)
    row, ids = torch.tensor([[1]]), torch.tensor([3])
    one, dense = Arguments(torch.empty(1, 0), ids, row), torch.zeros(1, 1)
    two = Arguments(torch.empty(2, 0), torch.tensor([3, 3]), torch.tensor([[1, 1]]))
    with pytest.raises(InputError, match=r"`user` \(of 2 rows\) must be one row"):
        loaded.run_candidates(two, Arguments(dense, ids, row))
    with pytest.raises(InputError, match=r"`dense_features` \(\[1, 0\]"):
        loaded.run_candidates(one, one)
    for item in (9, -1):
        with pytest.raises(InputError, match="ids of 'item' must be from 0 to 8, as no row stands"):
            loaded.run_candidates(one, Arguments(dense, torch.tensor([item]), row))


@pytest.mark.slow
def test_a_package_has_the_policy_for_unknown_ids(shop):
    loaded = load_package(shop[1])
    dense, lengths = torch.zeros(1, 1), torch.tensor([[1], [1]])
    known, unknown = (loaded.run(Arguments(dense, torch.tensor([3, tag]), lengths)) for tag in (0, 2**40))
    torch.testing.assert_close(unknown, known)
    for wrong in (-1, 9, 2**40):
        with pytest.raises(InputError, match="ids of 'item' must be from 0 to 8, as no row stands for unknown ones"):
            loaded.run(Arguments(dense, torch.tensor([wrong, 0]), lengths))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_features": torch.zeros(2, 2)}, r"`dense_features` \(\[2, 2\]"),
        ({"dense_features": torch.zeros(2, 1).double()}, "torch.float64"),
        ({"values": torch.tensor([3, 8])}, r"`values` \(\[2\]"),
        ({"values": torch.tensor([3, 8, 1]).int()}, "torch.int32"),
        ({"lengths": torch.tensor([[1, 1]])}, "`lengths`"),
        ({"lengths": torch.tensor([[1, 1], [2, -1]])}, "`lengths` must have at least one row, and be at least 0"),
        ({"weights": torch.ones(3)}, "`weights` must not be given"),
    ],
)
def test_arguments_of_another_form_never_reach_the_code(change, message, shop):
    right = {
        "dense_features": torch.zeros(2, 1),
        "values": torch.tensor([3, 8, 1]),
        "lengths": torch.tensor([[1, 1], [0, 1]]),
    }
    with pytest.raises(InputError, match=message):
        load_package(shop[1]).run(Arguments(**{**right, **change}))


@pytest.mark.slow
def test_new_rows_need_no_compiling(package, shop):
    rows = np.load(package / "rows_0.npy")
    values = rows.view(np.float32)
    np.save(package / "rows_0.npy", (2 * values).view(np.uint8))
    with pytest.raises(InputError, match=r"rows_0\.npy: was changed since the package was made"):
        load_package(package)
    manifest = Manifest.load(shop[1])
    manifest.save(package)
    with pytest.raises(InputError, match="the scores of its golden batch differ by"):
        load_package(package)


@pytest.mark.slow
@pytest.mark.parametrize("name", [MODEL_FILE, "rows_0.npy", "golden.npz", "schema.json"])
def test_a_changed_or_missing_file_is_found_before_anything_runs(name, package, monkeypatch):
    def runs(*_):
        raise AssertionError("native code was loaded")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", runs)
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    with pytest.raises(InputError, match="was changed since the package was made"):
        load_package(package)
    (package / name).unlink()
    with pytest.raises(InputError, match="is missing"):
        load_package(package)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, r"`version` \(=99\) must be 2: export it again"),
        ({"torch": "1.0.0"}, r"is for PyTorch 1\.0\.0, not"),
        ({"march": "armv9"}, "is for processors of armv9"),
        ({"files": {}}, "must name 'candidates.pt2' among its files"),
        ({"files": {"../../etc/passwd": "0"}}, "is no name of a file of a package"),
        ({"tasks": 3}, "a value is of the wrong kind"),
        ({"num_rows_files": "1"}, "`num_rows_files`"),
        ({"keys": None}, r"`keys` \(=None\) must be of type list of str"),
    ],
)
def test_a_wrong_manifest_is_one_sentence(change, message, package):
    content = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(InputError, match=message):
        load_package(package)


def test_what_cannot_be_exported_is_refused_first(tmp_path):
    model = system("mmoe")
    golden = as_batch(batch(3))
    for arguments, message in [
        ({"table_type": "int7"}, "`table_type`"),
        ({"march": "native"}, "`march`"),
        ({"unknown_rows": {"f9": 0}}, "must have a row of its table for a key of"),
        ({"unknown_rows": {"f1": 10**6}}, "must have a row of its table for a key of"),
    ]:
        with pytest.raises(InputError, match=message):
            export_package(model, TASKS, tmp_path / "package", golden, **arguments)
    with pytest.raises(InputError, match="must have a `FeatureArch` to be exported"):
        export_package(torch.nn.Linear(2, 2), TASKS, tmp_path / "package", golden)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="must not exist"):
        export_package(model, TASKS, tmp_path / "there", golden)
    assert this_processor() in ("x86-64-v3", "x86-64-v4")
