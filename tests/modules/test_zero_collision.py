"""Tables for ids without a vocabulary, on one process: who has a row, who loses it, and that nothing else is lost."""

import copy
import itertools

import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.eviction import EVICTIONS
from torchrec_mtl.modules.id_hash import ANY_ID, hash_ids, unhash_ids
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection, row_module
from torchrec_mtl.modules.zero_collision_rows import ZeroCollisionRows


def jagged(ids):
    return {"t": JaggedTensor(values=torch.as_tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))}


def remapped(rows, ids):
    return rows.remap(jagged(ids))["t"].values().tolist()


def batches(number, seed=0, size=40, ids=60):
    """Ids of which few are frequent, and which ones changes from batch to batch."""
    generator = torch.Generator().manual_seed(seed)
    for batch in range(number):
        skewed = torch.rand(size, generator=generator) ** 2 * ids
        yield hash_ids(skewed.long() + 3 * batch)


class Oracle:
    """The rule, bucket by bucket and id by id, in plain Python."""

    def __init__(self, eviction, num_rows, buckets, interval, decay):
        self.eviction, self.buckets, self.interval, self.decay = eviction, buckets, interval, decay
        self.rows = [[None] * (num_rows // buckets - 1) for _ in range(buckets)]  # [id, count, last batch]
        self.batch, self.pending = 0, {}

    def worth(self, entry):
        if entry is None:
            return -1
        _, count, last = entry
        return {"lfu": count, "lru": last, "none": count}.get(
            self.eviction, count / (self.batch - last + 1) ** self.decay
        )

    def see(self, ids):
        self.batch += 1
        for each in ids:
            entry = self.pending.setdefault(each, [each, 0, 0])
            entry[1:] = entry[1] + 1, self.batch
        if self.batch % self.interval:
            return
        known = {entry[0]: entry for rows in self.rows for entry in rows if entry}
        for each, count, last in self.pending.values():
            if each in known:
                known[each][1:] = known[each][1] + count, last
        new = sorted((e for e in self.pending.values() if e[0] not in known), key=lambda e: (-self.worth(e), e[0]))
        self.pending = {}
        for bucket, rows in enumerate(self.rows):
            order = sorted(range(len(rows)), key=lambda row: (self.worth(rows[row]), row))
            if self.eviction == "none":
                order = [row for row in order if rows[row] is None]
            for row, entry in zip(order, [e for e in new if e[0] % self.buckets == bucket], strict=False):
                if self.worth(entry) > self.worth(rows[row]):
                    rows[row] = entry


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_rows_are_given_by_the_rule(eviction, decay, interval):
    rows = ZeroCollisionRows("t", 48, eviction=eviction, buckets=4, interval=interval, decay=decay)
    oracle = Oracle(eviction, 48, 4, interval, decay)
    for ids in batches(30):
        rows.profile(jagged(ids))
        oracle.see(ids.tolist())
        expected = [entry[0] if entry else ANY_ID for of_bucket in oracle.rows for entry in [*of_bucket, None]]
        assert rows.hashed_ids.tolist() == expected
        assert rows.open_slots().item() == sum(each is None for of_bucket in oracle.rows for each in of_bucket)
        looked_up = [expected.index(each) if each in expected else each % 4 * 12 + 11 for each in ids.tolist()]
        assert remapped(rows, ids) == looked_up


POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}


@pytest.mark.parametrize("eviction", POLICIES)
def test_one_bucket_keeps_the_ids_that_torchrec_keeps(eviction):
    """Up to ties, so worths are compared: counts, or the last batches."""
    ours = ZeroCollisionRows("t", 20, eviction=eviction, buckets=1, interval=1)
    theirs = MCHManagedCollisionModule(
        zch_size=20, device=torch.device("cpu"), eviction_policy=POLICIES[eviction](), eviction_interval=1
    )
    first = [each for each, times in zip(range(60), itertools.cycle([1, 2, 3, 5]), strict=False) for _ in range(times)]
    for ids in (torch.tensor(first), torch.tensor(first)[::3], torch.arange(30, 50).repeat(4)):
        ours.profile(jagged(ids))
        theirs.profile(jagged(ids))
    state = "last_seen" if eviction == "lru" else "counts"
    of_theirs = getattr(theirs, "_mch_last_access_iter" if eviction == "lru" else "_mch_counts")
    taken = theirs._mch_sorted_raw_ids != ANY_ID
    assert sorted(getattr(ours, state)[ours.hashed_ids != ANY_ID].tolist()) == sorted(of_theirs[taken].tolist())


def test_no_id_of_an_interval_is_dropped():
    """TorchRec's history has room for 1.25 times the first batch."""
    rows = ZeroCollisionRows("t", 200, buckets=1, interval=2)
    rows.profile(jagged([1]))
    rows.profile(jagged(list(range(100))))
    assert sorted(remapped(rows, list(range(100)))) == list(range(100))


def test_what_is_no_id_gets_no_row():
    """To TorchRec, free rows have the id 2^63 - 1, so it finds one."""
    rows = ZeroCollisionRows("t", 12, buckets=2, interval=1)
    rows.profile(jagged([ANY_ID, ANY_ID, 4]))
    assert rows.open_slots().item() == 9
    assert remapped(rows, [ANY_ID]) == [11]  # the row that ids of its bucket share


def collection(features=("user", "item"), num_rows=32, **arguments):
    tables = [
        EmbeddingBagConfig(
            name=f"t_{name}",
            embedding_dim=4,
            num_embeddings=num_rows,
            feature_names=[name],
            pooling=PoolingType.SUM,
            init_fn=lambda values: torch.nn.init.normal_(values, std=0.1),
        )
        for name in features
    ]
    return ZeroCollisionEmbeddingBagCollection(tables, **{"buckets": 2, "interval": 1, **arguments})


def kjt(keys, ids, weights=None):
    ids = torch.as_tensor(ids)
    lengths = torch.ones(len(ids), dtype=torch.int32)
    return KeyedJaggedTensor.from_lengths_sync(list(keys), ids, lengths, weights)


def test_a_row_that_changes_hands_starts_anew():
    """TorchRec leaves the old id's row to the new one, if the collection is not sharded."""
    model = collection(["user"], num_rows=4, eviction="lru")  # one id a bucket
    weight = model._embedding_module.embedding_bags["t_user"].weight
    rows = row_module(model._managed_collision_collection, "t_user")
    first, second = (unhash_ids(torch.tensor([each])) for each in (100, 102))  # both of bucket 0
    model(kjt(["user"], first))
    with torch.no_grad():
        weight.fill_(7.0)
    pooled, _ = model(kjt(["user"], second))
    assert rows.hashed_ids.tolist() == [102, ANY_ID, ANY_ID, ANY_ID]
    assert 0 < weight[0].abs().max() < 1
    assert weight[1:].eq(7).all()
    assert pooled["user"].equal(weight[:1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_any_integer_type(dtype):
    """TorchRec fails on int32 ids that have a row."""
    model = collection()
    of_int64 = copy.deepcopy(model)
    ids = torch.arange(8)
    assert (
        model(kjt(["user", "item"], ids.to(dtype)))[0].values().equal(of_int64(kjt(["user", "item"], ids))[0].values())
    )


def test_other_keys_another_order_and_empty_batches():
    model = collection()
    alone = copy.deepcopy(model)
    both = kjt(["item", "other", "user"], [5, 6, 7, 8, 9, 10])
    expected = alone(kjt(["user", "item"], [9, 10, 5, 6]))[0].values()
    assert model(both)[0].values().equal(expected)
    empty = KeyedJaggedTensor.from_lengths_sync(["user", "item"], torch.empty(0).long(), torch.zeros(4).int())
    assert model(empty)[0].values().eq(0).all()


def test_evaluation_changes_nothing():
    model = collection().eval()
    before = copy.deepcopy(model.state_dict())
    model(kjt(["user", "item"], [1, 2, 3, 4]))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_saved_collection_goes_on_in_another(eviction):
    model = collection(eviction=eviction, interval=2)
    again = collection(eviction=eviction, interval=2, seed=0)
    steps = [kjt(["user", "item"], [*range(step, 40 + step), *range(40)]) for step in range(0, 70, 10)]
    for step in steps[:3]:
        model(step)
    again.load_state_dict(model.state_dict())
    for table in ("t_user", "t_item"):
        ours, theirs = (row_module(each._managed_collision_collection, table) for each in (again, model))
        ours.restore_pending(theirs.pending())
    for step in steps[3:]:
        assert model(step)[0].values().equal(again(step)[0].values())
    assert all(value.equal(again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eviction": "fifo"}, r"`eviction` \(='fifo'\) must be one of"),
        ({"interval": 0}, r"`interval` \(=0\) must be at least 1"),
        ({"buckets": 0}, r"`buckets` \(=0\) must be at least 1"),
        ({"decay": -1.0}, r"`decay` \(=-1.0\) must be at least 0"),
        ({"buckets": 5}, r"`num_rows` \(=32\) of t_user must be a multiple of `buckets` \(=5\).* such as 35"),
        ({"features": ["user", "user"]}, "feature 'user' must be of one table without a vocabulary"),
        ({"buckets": 32}, r"`num_rows` \(=32\) of t_user must be .*, with two rows for each, such as 64"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        collection(**arguments)
