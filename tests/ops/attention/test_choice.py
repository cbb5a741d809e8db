"""Which backend runs: as "auto" chooses, as the environment says, or by name."""

import pytest
import torch

from tests.ops.attention.inputs import SelfAttention, arguments
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import backends, library
from torchrec_mtl.ops.attention import cpp, reference


@pytest.fixture
def chosen(monkeypatch):
    """Records the backends that are called, as if the kernel were built."""
    calls = []
    monkeypatch.setattr(library, "load", lambda: True)
    monkeypatch.setattr(cpp, "attention", lambda *tensors: calls.append("cpp") or tensors[0])
    monkeypatch.setattr(reference, "attention", lambda *_: calls.append("reference"))
    return calls


@pytest.mark.parametrize(
    ("shape", "heads", "expected"),
    [
        ((2048, 34, 34, 8), 1, "cpp"),
        ((1024, 20, 20, 18), 2, "cpp"),
        ((1, 34, 34, 8), 1, "cpp"),
        ((256, 200, 200, 8), 1, "cpp"),
        ((7, 200, 200, 8), 1, "reference"),  # most lanes would be empty
        ((256, 200, 200, 16), 1, "reference"),
        ((2048, 34, 34, 32), 1, "reference"),
        ((2048, 34, 34, 32), 2, "cpp"),
        ((16, 3, 0, 8), 1, "reference"),
    ],
)
def test_auto_takes_the_kernel_where_it_is_faster(chosen, shape, heads, expected):
    ops.attention(*(x.detach() for x in arguments(*shape)), heads)
    assert chosen == [expected]


@pytest.mark.parametrize(("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")])
def test_auto_avoids_tensors_that_the_kernel_cannot_take(chosen, dtype, device, monkeypatch):
    tensors = [x.to(device) for x in arguments(9, 3, 4, 8, dtype)]
    ops.attention(*tensors)
    assert chosen == ["reference"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="the attention kernel cannot be used: it "):
        ops.attention(*tensors, backend="cpp")


def test_without_a_kernel_auto_logs_it_once_and_cpp_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(library, "load", lambda: False)
    backends._log_once.cache_clear()
    caplog.set_level("INFO")
    tensors = arguments(9, 3, 4, 8)
    for _ in range(2):
        assert torch.equal(ops.attention(*tensors), ops.attention(*tensors, backend="reference"))
    (message,) = caplog.messages
    assert message.startswith("attention: backend 'reference', because the C++ kernel cannot be used: it is not built")
    with pytest.raises(InputError, match=r"not built: run `python -m torchrec_mtl\.ops\.build`"):
        ops.attention(*tensors, backend="cpp")


def test_the_environment_replaces_auto_only(chosen, monkeypatch):
    tensors = arguments(9, 3, 4, 8)
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "reference")
    ops.attention(*tensors)
    ops.attention(*tensors, backend="cpp")
    assert chosen == ["reference", "cpp"]
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "c++")
    with pytest.raises(InputError, match=r"\$TORCHREC_MTL_ATTENTION \(='c\+\+'\) must be one of"):
        ops.attention(*tensors)
    with pytest.raises(InputError, match=r"`backend` \(='C'\) must be one of"):
        ops.attention(*tensors, backend="C")


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_a_traced_module_chooses_when_it_runs(chosen, backend):
    traced = torch.fx.symbolic_trace(SelfAttention(backend))
    assert chosen == []
    traced(torch.randn(9, 4, 8))
    assert chosen == ["cpp"]
