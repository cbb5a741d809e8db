"""When the schedule of TAFE's smooth step moves, and when it does not."""

import copy
import pickle

import torch
from torch.utils.checkpoint import checkpoint
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from torchrec_mtl.modules import DynamicSelector


def selector_and_optimizer():
    selector = DynamicSelector(6, 4, layer_sizes=(5,))
    return selector, torch.optim.SGD(selector.parameters(), lr=0.1)


def backward(selector):
    selector(torch.randn(3, 6)).sum().backward()


def test_moves_once_a_step_of_its_optimizer():
    selector, optimizer = selector_and_optimizer()
    for expected in (1, 2, 3):
        backward(selector)
        optimizer.step()
        assert selector.step == expected


def test_stays_in_evaluation_with_micro_batches_and_under_recomputation():
    selector, optimizer = selector_and_optimizer()
    selector.eval()(torch.randn(3, 6))
    for _ in range(4):
        backward(selector.train())
    checkpoint(selector, torch.randn(3, 6), use_reentrant=False).sum().backward()
    assert selector.step == 0
    optimizer.step()
    assert selector.step == 1


def test_stays_where_another_optimizer_steps():
    selector, _ = selector_and_optimizer()
    other, optimizer = selector_and_optimizer()
    backward(other)
    optimizer.step()
    assert (selector.step, other.step) == (0, 1)


def test_moves_once_under_torchrecs_wrappers():
    selector = DynamicSelector(6, 4)
    wrapped = KeyedOptimizerWrapper(dict(selector.named_parameters()), lambda p: torch.optim.Adam(p, lr=0.1))
    combined = CombinedOptimizer([("dense", wrapped)])
    backward(selector)
    combined.step()
    assert selector.step == 1


def test_copies_move_by_themselves():
    original, _ = selector_and_optimizer()
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        backward(twin)
        optimizer.step()
        assert (original.step, twin.step) == (0, 1)


def test_is_saved_and_restored():
    selector, _ = selector_and_optimizer()
    selector.advance()
    other, _ = selector_and_optimizer()
    other.load_state_dict(selector.state_dict())
    assert other.step == 1
    assert torch.equal(other.gamma(), selector.gamma())
    other.reset_parameters()
    assert other.step == 0
