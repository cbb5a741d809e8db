"""TAFE's task-specific adapter and the pooling of its ablation, against the equations."""

import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import tafe
from torchrec_mtl.modules import PooledRepresentation, TaskAdapter

B, D, K, T, L = 3, 6, 4, 3, 3


def test_adapter_matches_tafe_equations_21_and_22():
    module = randomized(TaskAdapter(T, D, L, num_heads=2))
    representations = randn(L, B, K, D).unbind()
    adapted = module(representations)
    for sample in range(B):
        for task in range(T):
            former = None
            for adapters, shared in zip(parameters.adapters(module), representations, strict=True):
                former = tafe.task_adapter(shared[sample].numpy(), former, adapters[task], 2)
            assert_close(adapted[sample, task], former)


def test_no_parameter_of_a_task_acts_on_another_tasks_output():
    module = randomized(TaskAdapter(T, D, L))
    adapted = module(randn(L, B, K, D).unbind())
    (adapted[:, 0] * randn(B, D)).sum().backward()  # varied: layer norm lets no constant through
    for parameter in module.parameters():
        assert parameter.grad[:, 1:].eq(0).all()
        assert parameter.grad[:, 0].ne(0).any()


def test_without_adapters_every_task_reads_the_mean_of_the_last_representation():
    representations = randn(L, B, K, D)
    expected = representations[-1].mean(1)
    for of_task in PooledRepresentation(T)(representations.unbind()).unbind(1):
        assert torch.equal(of_task, expected)
