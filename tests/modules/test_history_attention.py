"""What reads a history: equal to the papers' equations on padded histories, in values and gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles import histories
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import HistoryTransformer, TargetAttention, jagged
from torchrec_mtl.modules.history_arch import HistoryFields

DIM, MAX_LENGTH, HEADS = 6, 4, 2
LENGTHS = torch.tensor([3, 0, 1, 7, 4, 3, 0])
KEYS = ["item", "seen"]


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    return array(layer.weight), np.zeros(1) if layer.bias is None else array(layer.bias)


def norm(layer: nn.LayerNorm) -> dict[str, np.ndarray]:
    return {"weight": array(layer.weight), "bias": array(layer.bias)}


def parameters(fields: HistoryFields) -> dict[str, object]:
    """Of a module with one history, as the oracle has them."""
    (attention,) = fields.attentions
    found: dict[str, object] = {
        "attention": {
            "hidden": linear(attention.hidden),
            "slope": attention.activation.weight.item(),
            "output": linear(attention.output),
        }
    }
    for transformer in fields.transformers:
        layers = [
            {
                "projection": array(layer.projection.weight),
                "output": array(layer.output.weight),
                "inner": linear(layer.inner),
                "outer": linear(layer.outer),
                "after_attention": norm(layer.after_attention),
                "after_mlp": norm(layer.after_mlp),
            }
            for layer in transformer.layers
        ]
        found["transformer"] = {"positions": array(transformer.positions.weight), "layers": layers}
    return found


def make(layers: int) -> HistoryFields:
    torch.manual_seed(layers)
    sizes = {"max_length": MAX_LENGTH, "transformer_layers": layers, "num_heads": HEADS, "layer_size": 5}
    fields = HistoryFields(KEYS, DIM, {"seen": "item"}, **sizes).double()
    for parameter in fields.parameters():
        nn.init.normal_(parameter, std=0.7)
    return fields


def given(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (int(LENGTHS.sum()), DIM), (len(LENGTHS), DIM)
    rows, candidates = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return rows.requires_grad_(requires_grad), candidates.requires_grad_(requires_grad)


def read(fields: HistoryFields, rows: torch.Tensor, candidates: torch.Tensor, lengths=LENGTHS) -> torch.Tensor:
    return fields({"item": (candidates, torch.ones_like(lengths)), "seen": (rows, lengths)})[:, DIM:]


every_depth = pytest.mark.parametrize("layers", [0, 1, 2])


@pytest.fixture(params=["by length", "padded"])
def _way(request, monkeypatch):
    """Both ways of attending: that of a graph, and the other."""
    if request.param == "padded":
        monkeypatch.setattr(jagged, "attend", jagged._padded)


@pytest.mark.usefixtures("_way")
@every_depth
def test_equals_the_padded_oracle(layers):
    fields, (rows, candidates) = make(layers), given()
    found = read(fields, rows, candidates)
    expected = histories.field(array(rows), LENGTHS.numpy(), array(candidates), parameters(fields), MAX_LENGTH, HEADS)
    np.testing.assert_allclose(array(found), expected, rtol=1e-10, atol=1e-10)
    assert found[1].eq(0).all()
    assert found[-1].eq(0).all()


@pytest.mark.usefixtures("_way")
@every_depth
def test_gradients_are_the_differences_of_the_oracle(layers):
    """Along a random direction of all inputs and parameters at once, and of each alone."""
    fields, inputs = make(layers), given(requires_grad=True)
    leaves = [*inputs, *fields.parameters()]
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(len(LENGTHS), DIM, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((read(fields, *inputs) * weights).sum(), leaves)

    def loss() -> float:
        rows, candidates = map(array, inputs)
        out = histories.field(rows, LENGTHS.numpy(), candidates, parameters(fields), MAX_LENGTH, HEADS)
        return float((out * weights.numpy()).sum())

    for chosen in [*([leaf] for leaf in leaves), leaves]:
        directions = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in chosen]
        sides = []
        for side in (1e-6, -2e-6):
            for leaf, direction in zip(chosen, directions, strict=True):
                leaf.data.add_(direction, alpha=side)
            sides.append(loss())
        for leaf, direction in zip(chosen, directions, strict=True):
            leaf.data.add_(direction, alpha=1e-6)
        along = {id(leaf): d for leaf, d in zip(chosen, directions, strict=True)}
        expected = sum((g * along[id(x)]).sum() for x, g in zip(leaves, gradients, strict=True) if id(x) in along)
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


@pytest.mark.usefixtures("_way")
@every_depth
def test_samples_do_not_see_each_other(layers):
    fields, (rows, candidates) = make(layers), given()
    found = read(fields, rows, candidates)
    order = [4, 0, 6, 3, 5, 1, 2]
    parts = rows.split(LENGTHS.tolist())
    permuted = read(fields, torch.cat([parts[n] for n in order]), candidates[order], LENGTHS[order])
    torch.testing.assert_close(permuted, found[order])
    alone = read(fields, parts[3], candidates[[3]], LENGTHS[[3]])
    torch.testing.assert_close(alone, found[[3]])


@every_depth
def test_the_order_matters_to_the_transformer_alone(layers):
    fields, (rows, candidates) = make(layers), given()
    backwards = torch.cat([part.flip(0) for part in rows[:4].split([3, 1])])
    lengths = torch.tensor([3, 1])
    found, turned = (read(fields, each, candidates[:2], lengths) for each in (rows[:4], backwards))
    assert torch.allclose(found, turned) == (layers == 0)
    for transformer in fields.transformers:
        nn.init.zeros_(transformer.positions.weight)
    found, turned = (read(fields, each, candidates[:2], lengths) for each in (rows[:4], backwards))
    torch.testing.assert_close(found, turned)


@every_depth
def test_the_newest_are_kept(layers):
    fields, (rows, candidates) = make(layers), given()
    found = read(fields, rows[:7], candidates[:1], torch.tensor([7]))
    newest = read(fields, rows[3:7], candidates[:1], torch.tensor([4]))
    torch.testing.assert_close(found, newest)
    assert not torch.allclose(found, read(fields, rows[:4], candidates[:1], torch.tensor([4])))


@pytest.mark.usefixtures("_way")
@every_depth
def test_no_history_at_all(layers):
    fields, (rows, candidates) = make(layers), given(requires_grad=True)
    found = read(fields, rows[:0], candidates, torch.zeros_like(LENGTHS))
    assert found.shape == (len(LENGTHS), DIM)
    found.sum().backward()
    gradients = [x.grad for x in (rows, candidates, *fields.parameters()) if x.grad is not None]
    assert not any(gradient.any() for gradient in gradients)  # NaN would be any


def test_starts_as_the_sum_without_order():
    """DIN with rows as small as tables start with; positions start at zero."""
    attention, (rows, candidates) = TargetAttention(DIM).double(), given()
    rows, candidates = rows / 100, candidates / 100
    torch.testing.assert_close(attention(rows, LENGTHS, candidates), jagged.summed(rows, LENGTHS), rtol=0.2, atol=1e-3)
    transformer = HistoryTransformer(DIM, max_length=MAX_LENGTH)
    assert not transformer.positions.weight.any()
    on_meta = HistoryTransformer(DIM).to("meta").to_empty(device="cpu")
    on_meta.positions.reset_parameters()
    assert not on_meta.positions.weight.any()


def test_autocast():
    fields, (rows, candidates) = make(1).float(), given()
    with torch.autocast("cpu", torch.bfloat16):
        found = read(fields, rows.float(), candidates.float())
    torch.testing.assert_close(found.float(), read(fields, rows.float(), candidates.float()), rtol=0.1, atol=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 4}, r"`num_heads` \(=4\) must divide `embedding_dim` \(=6\)"),
        ({"num_layers": 0}, r"`num_layers` \(=0\) must be at least 1"),
        ({"max_length": 0}, r"`max_length` \(=0\) must be at least 1"),
    ],
)
def test_wrong_sizes(arguments, message):
    with pytest.raises(InputError, match=message):
        HistoryTransformer(DIM, **arguments)
