"""A synthetic funnel with known probabilities, and so with a known limit for every model.

Each field draws its ids independently from a power law: ``P(id = v) ~ (v + 1)^-zipf_exponent``. Given the step before,
step ``t`` happens with probability ``sigmoid(intercept_t + signal * score_t)``. A score is a sum of one effect per id,
plus a sum, over some pairs of fields, of products of two effects. Effects are drawn once, then centred and scaled under
the power law. So each sum has the intended variance, and the products are pure interactions: given one of the two ids,
their mean is 0, and a model that adds up effects cannot see them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from torchrec_mtl.argument_types import check_fields, checked
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError, check_at_least, check_sizes
from torchrec_mtl.tasks import TaskChain

MAX_LIST_LENGTH = 4  # of the multi-valued field; the smallest is 0
EFFECTS, INTERCEPTS, ROWS = range(3)  # streams of random numbers under one seed
NUM_ROWS_FOR_INTERCEPTS = 2**17


@dataclass(frozen=True)
class SyntheticFunnel:
    """A funnel with tasks ``step_1``, ``step_2``, ... and fields ``field_1``, ``field_2``, ...; low ids are frequent.

    Args:
        base_rates: share of positives among all rows for each task, in falling order.
        field_sizes: number of ids of each field.
        num_pairs: number of pairs of fields that interact: ``field_1`` with ``field_2``, ``field_3`` with ``field_4``,
            and so on.
        list_size: number of ids of an additional field ``list``, which has 0 to 4 ids per row and no interactions; 0
            for no such field.
        signal: standard deviation of the logit of a step, over rows and effects.
        interaction: share of the logit's variance that comes from the pairs.
        correlation: correlation between the logits of any two steps, over rows and effects.
        zipf_exponent: exponent of the power law; 0 for uniform ids.
        seed: seed of the effects.

    Raises:
        InputError: if a number is out of range.

    Example::

        >>> funnel = SyntheticFunnel(base_rates=(0.4, 0.1), field_sizes=(50, 10, 20), num_pairs=1)
        >>> rows = funnel.sample(4)
        >>> rows.columns
        ['field_1', 'field_2', 'field_3', 'step_1', 'step_2', 'p_step_1', 'p_step_2']
        >>> funnel.conditional_probabilities(rows).shape
        (4, 2)
    """

    base_rates: Sequence[float] = (0.2, 0.08, 0.03)
    field_sizes: Sequence[int] = (10, 100, 20, 50, 30, 200, 500, 1_000, 5_000, 20_000)
    num_pairs: int = 3
    list_size: int = 0
    signal: float = 1.2
    interaction: float = 0.5
    correlation: float = 0.5
    zipf_exponent: float = 1.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "base_rates", tuple(self.base_rates))
        object.__setattr__(self, "field_sizes", tuple(self.field_sizes))
        rates, sizes = list(self.base_rates), list(self.field_sizes)
        if not rates or any(not 0 < after < before for before, after in zip([1.0, *rates], rates, strict=False)):
            raise InputError(f"`base_rates` (={rates}) must fall, the first below 1 and the last above 0")
        if len(sizes) < 2 or min(sizes) < 2:
            raise InputError(f"`field_sizes` (={sizes}) must be two or more numbers of at least 2")
        check_sizes(field_sizes=sizes)
        if not 1 <= self.num_pairs <= len(sizes) // 2:
            raise InputError(f"`num_pairs` (={self.num_pairs}) must be from 1 to half the fields ({len(sizes)})")
        check_at_least(0, list_size=self.list_size)
        if self.list_size == 1:
            raise InputError(f"`list_size` (={self.list_size}) must be 0 or at least 2")
        for name in ("interaction", "correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` (={getattr(self, name)}) must be at least 0 and at most 1")
        for name in ("signal", "zipf_exponent", "seed"):
            check_at_least(0, **{name: getattr(self, name)})

    @cached_property
    def schema(self) -> Schema:
        """Fields and tasks of the funnel; the last of ``field_sizes`` groups rows, as a user does."""
        fields = [Field(f"field_{i}", size) for i, size in enumerate(self.field_sizes, 1)]
        group = fields[-1].name
        if self.list_size:
            fields.append(Field("list", self.list_size, multi_valued=True))
        tasks = TaskChain([f"step_{t}" for t in range(1, len(self.base_rates) + 1)])
        return Schema("synthetic", fields, tasks, group=group, notes={"source": repr(self)})

    @checked
    def sample(self, num_rows: int, seed: int = 0) -> pl.DataFrame:
        """Draws rows of ids, labels, and ``p_<task>``, the marginal probability of each label given the ids."""
        check_at_least(1, num_rows=num_rows)
        check_at_least(0, seed=seed)
        rng = np.random.default_rng([self.seed, ROWS, seed])
        rows, tasks = self._draw_ids(rng, num_rows), list(self.schema.tasks)
        conditional = self.conditional_probabilities(rows)
        labels = (rng.random(conditional.shape) < conditional).astype(np.int8).cumprod(axis=1, dtype=np.int8)
        marginal = conditional.cumprod(axis=1)
        label_columns = {task: labels[:, t] for t, task in enumerate(tasks)}
        return rows.with_columns(**label_columns, **{f"p_{task}": marginal[:, t] for t, task in enumerate(tasks)})

    def conditional_probabilities(self, rows: pl.DataFrame) -> Array:
        """Returns ``P(y_t = 1 | y_{t-1} = 1, ids)``, float64 ``[N, T]``, for rows with a column per field."""
        return _sigmoid(self._logits(rows) + self._intercepts)

    def _draw_ids(self, rng: np.random.Generator, num_rows: int) -> pl.DataFrame:
        columns = {}
        for field in self.schema.fields:
            cumulative = _zipf(field.num_embeddings, self.zipf_exponent).cumsum()[:-1]  # the last sum may be below 1
            uniform = rng.random((num_rows, MAX_LIST_LENGTH if field.multi_valued else 1))
            ids = pl.DataFrame(cumulative.searchsorted(uniform, side="right").astype(np.int32))
            if field.multi_valued:
                lengths = rng.integers(0, MAX_LIST_LENGTH, num_rows, endpoint=True)
                ids = ids.select(pl.concat_list(pl.all())).with_columns(lengths=lengths)
                ids = ids.select(pl.first().list.head("lengths"))
            columns[field.name] = ids.to_series()
        return pl.DataFrame(columns)

    @cached_property
    def _effects(self) -> dict[str, Array]:
        """Effects ``[ids, 2, 1 + T]`` of each field: alone and in the pair, for each score."""
        effects = {}
        for index, field in enumerate(self.schema.fields):
            rng = np.random.default_rng([self.seed, EFFECTS, index])
            effect = rng.normal(size=(field.num_embeddings, 2, 1 + len(self.base_rates)))
            frequencies = _zipf(field.num_embeddings, self.zipf_exponent)
            effect -= np.tensordot(frequencies, effect, 1)
            effects[field.name] = effect / np.sqrt(np.tensordot(frequencies, effect**2, 1))
        return effects

    def _logits(self, rows: pl.DataFrame) -> Array:
        """Returns ``signal * score``, ``[N, T]``; a score mixes one that all steps share with one for its step."""
        alone = products = first = np.zeros((rows.height, 1))
        for index, field in enumerate(self.schema.fields):
            effects = self._effects[field.name]
            if field.multi_valued:
                alone = alone + _sum_effects(rows[field.name], effects[:, 0]) / np.sqrt(MAX_LIST_LENGTH / 2)
                continue
            effect = effects[rows[field.name].to_numpy()]
            alone = alone + effect[:, 0]
            if index < 2 * self.num_pairs and index % 2:
                products = products + first * effect[:, 1]
            first = effect[:, 1]
        scores = np.sqrt((1 - self.interaction) / len(self.schema.fields)) * alone
        scores += np.sqrt(self.interaction / self.num_pairs) * products
        shared, by_step = scores[:, :1], scores[:, 1:]
        return self.signal * (np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * by_step)

    @cached_property
    def _intercepts(self) -> Array:
        """Intercepts ``[T]``, by bisection: on a sample of rows, mean marginal probabilities equal the base rates."""
        logits = self._logits(self._draw_ids(np.random.default_rng([self.seed, INTERCEPTS]), NUM_ROWS_FOR_INTERCEPTS))
        reached, intercepts = np.ones(len(logits)), []
        for rate, logit in zip(self.base_rates, logits.T, strict=True):
            low, high = -100 - np.abs(logit).max(), 100 + np.abs(logit).max()
            for _ in range(60):
                middle = (low + high) / 2
                too_high = (reached * _sigmoid(logit + middle)).mean() > rate
                low, high = (low, middle) if too_high else (middle, high)
            intercepts.append(middle)
            reached = reached * _sigmoid(logit + middle)
        return np.array(intercepts)


def _sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def _zipf(size: int, exponent: float) -> Array:
    weights = np.arange(1.0, size + 1) ** -exponent
    return weights / weights.sum()


def _sum_effects(lists: pl.Series, effects: Array) -> Array:
    """Returns the sum of the effects of the ids in each list, ``[N, 1 + T]``."""
    rows = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    id_effects = effects[lists.explode().drop_nulls().to_numpy()]
    return np.stack([np.bincount(rows, column, len(lists)) for column in id_effects.T], axis=1)
