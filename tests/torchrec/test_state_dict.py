"""TorchRec's state-dict tests on every model: sharded state is loaded into another model, which then is the same."""

import functools
import os
from unittest import mock

import pytest
import torch

from tests.torchrec.sparse_nn import CONTROL, NAMES, TABLES, model_class, test_model_parallel_base

TESTS = ["test_meta_device_dmp_state_dict", "test_load_state_dict", "test_params_and_buffers"]
FURTHER_TESTS = [
    "test_load_state_dict_dp",
    "test_load_state_dict_prefix",
    "test_load_state_dict_cw_multiple_shards",
    "test_optimizer_load_state_dict",
]
CASES = [(name, test) for name in NAMES for test in TESTS]
CASES += [(name, test) for name in (CONTROL, "bpcm", "tafe") for test in FURTHER_TESTS]
CASES.remove((CONTROL, "test_params_and_buffers"))  # DLRM has a buffer that is not in its state


class OfModel(test_model_parallel_base.ModelParallelStateDictBase):
    __test__ = False  # one by one, below, each with every model
    backend = "gloo"
    name = ""

    def _create_tables(self) -> None:
        self.tables = TABLES

    def _create_model(self) -> torch.nn.Module:
        return model_class(self.name)(
            self.tables, self.num_float_features, sparse_device=torch.device("meta"), dense_device=self.device
        )


@functools.cache  # Hypothesis wants one object to call a test
def case_of(test: str) -> OfModel:
    return OfModel(test)


@pytest.mark.parametrize(("name", "test"), CASES)
def test_state_dict(name, test):
    case = case_of(test)
    case.name = name
    with mock.patch.dict(os.environ):  # TorchRec's test sets RANK and more
        result = case.run()
    assert result.testsRun == 1
    assert not result.skipped
    assert result.wasSuccessful(), [*result.failures, *result.errors]
