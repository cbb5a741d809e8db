"""Which backend runs: as "auto" chooses, as the environment says, or by name; and what is refused."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import Shape, StackModule, small_tensors
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import GeneratorWeights, InducingLayer, backends, library
from torchrec_mtl.ops.inducing_attention import compact, cpp, cuda, reference, sdpa, triton
from torchrec_mtl.ops.inducing_attention.cuda import operators as cuda_operators
from torchrec_mtl.ops.inducing_attention.triton import operators as triton_operators


@pytest.fixture
def chosen(monkeypatch):
    """Records the backends that are called, as if the kernel were built."""
    calls = []
    monkeypatch.setattr(library, "load", lambda: True)
    for name, module in {"reference": reference, "sdpa": sdpa, "compact": compact, "cpp": cpp}.items():
        monkeypatch.setattr(module, "inducing_stack", lambda *x, name=name: calls.append(name) or x[0])
    return calls


@pytest.mark.parametrize(
    ("shape", "active", "z_grad", "expected"),
    [
        (Shape(B=64, F=20, K=64, D=18, m=2, L=4), 1.0, "gated", "cpp"),
        (Shape(B=64, F=20, K=64, D=18, m=2, L=4), 0.25, "full", "cpp"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.4, "gated", "compact"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.25, "full", "sdpa"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.9, "gated", "sdpa"),
        (Shape(B=64, F=1000, K=16, D=8, m=1), 0.9, "gated", "sdpa"),
        (Shape(B=0, F=5, K=4, D=8, m=1), 0.9, "gated", "cpp"),
    ],
)
def test_auto_takes_the_fastest_backend(chosen, shape, active, z_grad, expected):
    arguments = stacks.tensors(shape)
    arguments[1] = (torch.rand(shape.B, shape.K) < active).double()
    stacks.on_backend("auto", z_grad=z_grad)(*arguments)
    assert chosen == [expected]


def test_without_gradients_auto_takes_the_kernel_for_larger_shapes(chosen):
    arguments = stacks.tensors(Shape(B=8, F=20, K=64, D=128, m=2))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            stacks.on_backend("auto")(*arguments)
    assert chosen == ["sdpa", "cpp"]


@pytest.mark.parametrize(("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")])
def test_auto_avoids_tensors_that_the_kernel_cannot_take(chosen, dtype, device, monkeypatch):
    arguments = [x.to(device) for x in small_tensors(dtype=dtype, active=1.0)]
    stacks.on_backend("auto")(*arguments)
    assert chosen == ["sdpa"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="the inducing-attention kernel cannot be used: it "):
        stacks.on_backend("cpp")(*arguments)


@pytest.mark.parametrize(
    ("changes", "built", "grad", "capability", "expected"),
    [
        ({}, True, True, (9, 0), "cuda"),
        ({"masked": True}, True, True, (9, 0), "cuda"),
        ({}, False, True, (9, 0), "triton"),
        ({"z_grad": "full"}, True, True, (9, 0), "triton"),
        ({"D": 40}, True, False, (9, 0), "triton"),
        ({"D": 40}, True, True, (9, 0), "sdpa"),
        ({"masked": True}, False, True, (9, 0), "sdpa"),
        ({"dtype": torch.float64}, True, True, (9, 0), "sdpa"),
        ({}, True, True, (7, 5), "sdpa"),
    ],
)
def test_on_a_gpu_auto_takes_what_an_h200_is_fastest_with(monkeypatch, changes, built, grad, capability, expected):
    changes = dict(changes)
    dtype, z_grad, masked = (
        changes.pop(*of) for of in (("dtype", torch.float32), ("z_grad", "gated"), ("masked", False))
    )
    calls = []
    for name, module in {"sdpa": sdpa, "triton": triton, "cuda": cuda}.items():
        runs = "inducing_stack" if name == "sdpa" else "run"
        monkeypatch.setattr(module, runs, lambda *x, name=name: calls.append(name) or x[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    monkeypatch.setattr(cuda.instances, "find", lambda *x: Path("kernels.so") if built else None)
    shape = Shape(B=4, F=20, K=64, D=18, m=2)._replace(**changes)
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        arguments = [torch.empty(x.shape, dtype=dtype, device="cuda") for x in stacks.tensors(shape)]
        stacks.on_backend("auto", z_grad=z_grad, masked=masked)(*arguments)
    assert calls == [expected]


@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
@pytest.mark.parametrize("built", [True, False])
def test_on_a_gpu_each_kind_of_kernel_is_asked_once_in_a_call_whether_it_can_run(monkeypatch, backend, built):
    asked = {cuda: 0, triton: 0}
    for module in asked:

        def why_not(*x, module=module, answer=module.why_not):
            asked[module] += 1
            return answer(*x)

        monkeypatch.setattr(module, "why_not", why_not)
    for operators in (cuda_operators, triton_operators):
        monkeypatch.setattr(operators, "inducing_stack", lambda *x: x[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(cuda.instances, "find", lambda *x: Path("kernels.so") if built else None)
    with FakeTensorMode():
        arguments = [torch.empty(x.shape, device="cuda") for x in stacks.tensors(Shape(B=4, F=20, K=64, D=18, m=2))]
        if backend == "cuda" and not built:
            with pytest.raises(InputError, match="the backend 'cuda' cannot be used: it is not built"):
                stacks.on_backend(backend)(*arguments)
        else:
            stacks.on_backend(backend)(*arguments)
    expected = {"auto": (1, 0 if built else 1), "cuda": (1, 0), "triton": (0, 1)}[backend]
    assert tuple(asked.values()) == expected


def test_without_a_kernel_auto_logs_it_once_and_cpp_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(library, "load", lambda: False)
    backends._log_once.cache_clear()
    caplog.set_level("INFO")
    arguments = small_tensors(batch=1, active=0.0)
    for _ in range(2):
        assert torch.equal(stacks.on_backend("auto")(*arguments), stacks.on_backend("compact")(*arguments))
    (message,) = caplog.messages
    assert message.startswith("inducing_attention: backend 'compact', because enough points are at 0, and the C++")
    with pytest.raises(InputError, match=r"not built: run `python -m torchrec_mtl\.ops\.build`"):
        stacks.on_backend("cpp")(*arguments)


def test_the_environment_replaces_auto_only(chosen, monkeypatch):
    monkeypatch.setenv("TORCHREC_MTL_INDUCING_ATTENTION", "reference")
    stacks.on_backend("auto")(*small_tensors())
    stacks.on_backend("compact")(*small_tensors())
    assert chosen == ["reference", "compact"]
    monkeypatch.setenv("TORCHREC_MTL_INDUCING_ATTENTION", "c++")
    with pytest.raises(InputError, match=r"\$TORCHREC_MTL_INDUCING_ATTENTION \(='c\+\+'\) must be one of"):
        stacks.on_backend("auto")(*small_tensors())


def test_a_traced_module_chooses_when_it_runs(chosen):
    traced = torch.fx.symbolic_trace(StackModule("auto"))
    assert chosen == []
    traced(*small_tensors()[:2])
    assert chosen == ["cpp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "triton2"}, r"`backend` \(='triton2'\) must be one of"),
        ({"residual": "sum"}, r"`residual` \(='sum'\) must be 'input', 'query' or 'none'"),
        ({"z_grad": "half"}, r"`z_grad` \(='half'\) must be 'gated' or 'full'"),
        ({"z_grad": "full", "backend": "compact"}, r"'compact' does not compute the gradient .* \(='full'\) asks for"),
        ({"z_grad": "full", "masked": True}, r"`z_grad` \(='full'\) must be 'gated' where `masked`"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        stacks.on_backend(**{"backend": "auto", **arguments})(*small_tensors())


@pytest.mark.parametrize("backend", ["compact", "cpp"])
def test_backends_for_stacks_refuse_one_layer(backend):
    inputs, selection, *weights = small_tensors()
    layer = GeneratorWeights(*weights[:6]).layers()[0]
    with pytest.raises(InputError, match=f"'{backend}' is for a stack whose layers share one selection"):
        ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, "query"), backend)
