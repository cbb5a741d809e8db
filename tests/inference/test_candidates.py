"""One user and many candidates score as rows that repeat the user, and take fewer products."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support import TASKS, build
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.package.candidates import CandidatesGraph
from torchrec_mtl.inference.package.graph import InferenceGraph
from torchrec_mtl.systems import SYSTEMS

N = 40
SIDE_BY_SIDE, APART = ("f1", "f2"), ("f0", "f3")


def graph(name):
    torch.manual_seed(0)
    dimension = {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}
    model = build(name, (4, 8, 4, 4), **dimension).eval()
    return InferenceGraph(model, TASKS, "int8", {"f0": 0, "f1": 1}).eval()


def some_ids(num_keys, num_rows):
    lengths = torch.randint(0, 4, (num_keys, num_rows))
    return torch.randint(0, 3, (int(lengths.sum()),)), lengths


def repeated(of_candidates, user, dense, candidates):
    """Arguments of the graph of rows: the user's ids once for each candidate."""
    of_rows, parts, lengths = of_candidates.of_rows, {}, {}
    for features, (values, of_values) in (
        (of_candidates.user_features, user),
        (of_candidates.features, candidates),
    ):
        ends = list(itertools.accumulate(of_values.sum(1).tolist(), initial=0))
        for place, feature in enumerate(features):
            parts[feature] = values[ends[place] : ends[place + 1]].repeat(N // of_values.shape[1])
            lengths[feature] = of_values[place].expand(N)
    ids, counts = (torch.cat([x[f] for f in sorted(x)]) for x in (parts, lengths))
    return dense, ids, counts.view(-1, N), None, of_rows.rows


def both(name, user_keys):
    """Graphs and arguments: of a user and candidates, and of rows."""
    of_rows = graph(name)
    of_candidates = CandidatesGraph(of_rows, user_keys).eval()
    user, candidates, dense = some_ids(2, 1), some_ids(2, N), torch.randn(N, of_rows.num_dense)
    given = (*user, None, dense, *candidates, None, of_rows.rows)
    return (of_candidates, given), (of_rows, repeated(of_candidates, user, dense, candidates))


@pytest.mark.parametrize(("name", "user_keys"), [("mmoe", SIDE_BY_SIDE), *((name, APART) for name in SYSTEMS)])
@torch.no_grad()
def test_candidates_score_as_rows_that_repeat_the_user(name, user_keys):
    (of_candidates, given), (of_rows, rows) = both(name, user_keys)
    torch.testing.assert_close(of_candidates(*given), of_rows(*rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["single_task", "shared_bottom", "mmoe", "ple", "esmm", "aitm"])
@torch.no_grad()
def test_the_users_columns_are_multiplied_once(name):
    flops = []
    for module, given in both(name, SIDE_BY_SIDE):
        with FlopCounterMode(display=False) as counter:
            module(*given)
        flops.append(counter.get_total_flops())
    assert flops[0] < flops[1]


@pytest.mark.parametrize("user_keys", [["f9"], ["f0", "f1", "f2", "f3"]])
def test_some_keys_must_be_the_users_and_some_the_candidates(user_keys):
    with pytest.raises(InputError, match=r"`user_keys` .* must be some of the keys, and not all"):
        CandidatesGraph(graph("shared_bottom"), user_keys)


@torch.no_grad()
def test_ids_without_a_row_are_named_or_refused():
    (of_candidates, given), _ = both("shared_bottom", ("f1", "f2"))
    lengths = torch.tensor([[1], [1]])
    unknown, named = (of_candidates(torch.tensor([first, 0]), lengths, *given[2:]) for first in (2**40, 1))
    torch.testing.assert_close(unknown, named)
    with pytest.raises(RuntimeError, match="out of bounds"):
        of_candidates(torch.tensor([0, 2**40]), lengths, *given[2:])
