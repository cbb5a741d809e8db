"""Labels that arrive late: what is prepared of them, row by row and in the long run, and what is refused."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from torchrec_mtl import Task, TaskChain, TaskForest
from torchrec_mtl.data import Field, Schema, read_split
from torchrec_mtl.data.table import ByHash, ByTime, Delay, Hashed, History, Table, TableEncoder, prepare_table
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.losses import DelayedLoss
from torchrec_mtl.systems import SYSTEMS

START = datetime(2026, 11, 1)
FUNNEL = TaskChain(["click", "buy"])
MASK = Delay("buy", time="bought_at", window="7d")
CORRECT = Delay("buy", time="bought_at", window="7d", policy="correct", wait="1d")


def at(days):
    return None if days is None else START + timedelta(days=days)


def log(rows):
    """Rows of day, click, and days from the row to a purchase, or None."""
    return pl.DataFrame(
        {
            "row": list(range(len(rows))),
            "item": [f"i{number % 5}" for number in range(len(rows))],
            "at": [at(day) for day, _, _ in rows],
            "click": [click for _, click, _ in rows],
            "buy": [int(delay is not None) for _, _, delay in rows],
            "bought_at": pl.Series(
                [None if delay is None else at(day + delay) for day, _, delay in rows], dtype=pl.Datetime
            ),
        }
    )


def declared(folder, raw, delays, split=None, **others):
    raw.write_parquet(folder / "raw.parquet")
    split = split or ByTime("2026-11-21", "2026-11-23")
    fields = [Hashed("item", num_buckets=20)]
    arguments = {"time": "at", "keep": ["row"], "delays": delays, "split": split, **others}
    return Table("shop", str(folder / "raw.parquet"), FUNNEL, fields, **arguments)


def prepared(folder, *arguments, **others):
    """All splits in one, with a column ``split``, sorted by row."""
    out = prepare_table(declared(folder, *arguments, **others), folder / "prepared")
    splits = [
        pl.read_parquet(out / f"{name}.parquet").with_columns(split=pl.lit(name)) for name in ("train", "valid", "test")
    ]
    return pl.concat(splits).sort("row", maintain_order=True)


def random_rows(seed, num_rows=400, num_days=30):
    rng = np.random.default_rng(seed)
    rows = []
    for day in np.sort(rng.integers(0, 4 * num_days, num_rows)) / 4:
        click = int(rng.random() < 0.7)
        delay = rng.choice([0.0, 0.25, 1.0, 1.25, 3.0, 7.0, 7.25, 12.0]) if click and rng.random() < 0.6 else None
        rows.append((float(day), click, None if delay is None else float(delay)))
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("as_of", [None, 20.0, 14.25])
def test_masked_labels_are_those_a_reader_would_find(tmp_path, seed, as_of):
    rows = random_rows(seed)
    found = prepared(tmp_path, log(rows), [MASK], as_of=None if as_of is None else at(as_of).isoformat())
    end = max(day + (delay or 0) for day, _, delay in rows)
    assert found["row"].to_list() == list(range(len(rows)))
    for (day, click, delay), row in zip(rows, found.iter_rows(named=True), strict=True):
        now = as_of if as_of is not None and row["split"] == "train" else end
        assert row["buy_known"] == (day + 7 <= now)
        if row["buy_known"]:
            assert row["buy"] == (delay is not None and delay <= 7)
        assert row["click"] == click
    assert "click_known" not in found.columns


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("as_of", [None, 20.0, 14.25])
def test_corrected_labels_are_first_read_after_the_wait_and_again_when_they_come(tmp_path, seed, as_of):
    rows = random_rows(seed)
    found = prepared(tmp_path, log(rows), [CORRECT], as_of=None if as_of is None else at(as_of).isoformat())
    last = max(day + (delay or 0) for day, _, delay in rows)
    training = [day for day, _, _ in rows if day < 20]
    begin, end = rows[0][0] + 7, min(max(training), last if as_of is None else as_of)
    of_row = found.partition_by("row", as_dict=True)
    num_copies = 0
    for number, (day, click, delay) in enumerate(rows):
        first, *again = of_row[number,].iter_rows(named=True)
        train = first["split"] == "train"
        now = as_of if as_of is not None and train else last
        happens = delay is not None and delay <= 7
        old, early, late = day + 7 <= now, happens and delay <= 1, happens and delay > 1
        assert (first["click"], first["click_known"]) == (click, 1)
        known = begin <= day + 1 <= end if train else old
        assert first["buy_known"] == known
        if known:
            assert first["buy"] == (early if train else happens)
        assert (first["buy_delayed_known"], first["buy_real_negative_known"]) == (old, old and not early)
        if old:
            assert (first["buy_delayed"], first["buy_real_negative"]) == (late, not happens)
        assert len(again) == (train and late and begin <= day + delay <= end)
        for copy in again:
            num_copies += 1
            weights = {name: value for name, value in copy.items() if name.endswith("_known") and value}
            assert weights == {"buy_known": 1}
            assert (copy["buy"], copy["item"], copy["split"]) == (1, first["item"], "train")
            assert copy["at"] - first["at"] == timedelta(days=delay)  # when it became known
    assert num_copies > 5
    report = json.loads((tmp_path / "prepared" / "report.json").read_text())
    assert any(f"{num_copies} training rows stand there once more" in line for line in report["findings"])


def test_prepared_late_labels_are_a_data_set_with_the_tasks_of_the_correction(tmp_path):
    out = prepare_table(declared(tmp_path, log(random_rows(0)), [CORRECT], as_of="2026-11-21"), tmp_path / "prepared")
    schema = Schema.load(out)
    assert str(schema.tasks) == "click -> (buy, buy_delayed), buy_real_negative"
    batch = read_split(out, "train").batch(torch.arange(10))
    assert batch.labels.shape == batch.weights.shape == (10, 4)
    loaded = TableEncoder.load(out).table
    assert (loaded.delays, loaded.as_of, loaded.tasks) == ((CORRECT,), "2026-11-21", FUNNEL)


def test_rows_have_given_weights_and_copies_too(tmp_path):
    tasks = TaskChain(["click", "buy"], weight_columns=[None, "price"])
    raw = log(random_rows(1)).with_columns(price=pl.col("row") % 3)
    table = declared(tmp_path, raw, [CORRECT])
    table = Table(
        "shop", table.source, tasks, table.fields, time="at", keep=["row"], delays=[CORRECT], split=table.split
    )
    found = pl.read_parquet(prepare_table(table, tmp_path / "prepared") / "train.parquet")
    weighted = found.filter(pl.col("buy_known") > 0)
    assert (weighted["buy_known"] == weighted["row"] % 3).all()
    assert set(weighted["row"].value_counts()["count"]) == {1, 2}


def test_without_delays_a_table_is_prepared_as_if_there_were_none(tmp_path):
    found = prepared(tmp_path, log(random_rows(0)), [])
    assert found.columns == ["item", "click", "buy", "at", "row", "split"]
    stored = json.loads((tmp_path / "prepared" / "encoders.json").read_text())["table"]
    assert not {"delays", "as_of"} & stored.keys()


def test_a_task_whose_parent_came_too_late_has_not_happened_either(tmp_path):
    """Else a row would have a purchase without its click."""
    clicked = Delay("click", time="clicked_at", window="1d")
    rows = [(day, 1, 3.0) for day in (0, 0.5, 1, 21, 23, 35)]
    raw = log(rows).with_columns(clicked_at=pl.col("at") + timedelta(days=2))
    found = prepared(tmp_path, raw, [clicked, MASK])
    assert found["click"].to_list() == found["buy"].to_list() == [0] * 6
    assert found["click_known"].to_list() == [1] * 6
    assert found["buy_known"].to_list() == [1] * 5 + [0]


DAY = 24 * 3600 * 10**6


@pytest.mark.parametrize("wait", ["6h", "2d"])
def test_the_stream_has_the_true_rate_once_its_negatives_are_weighted(tmp_path, wait):
    """In a log with one x and exponential delays, first labels and copies, with the true p_rn."""
    rng = np.random.default_rng(0)
    num_rows, rate, mean = 60_000, 0.4, 2.0
    day, delay = np.sort(rng.uniform(0, 20, num_rows)), rng.exponential(mean, num_rows)
    happens = rng.random(num_rows) < rate
    raw = pl.DataFrame(
        {
            "item": ["a"] * num_rows,
            "at": (day * DAY).astype(np.int64),
            "buy": happens.astype(int),
            "click": 1,
            "bought_at": ((day + delay) * DAY).astype(np.int64),
        }
    ).with_columns(bought_at=pl.when(pl.col("buy") == 1).then("bought_at"), row=pl.int_range(num_rows))
    late = Delay("buy", time="bought_at", window="7d", policy="correct", wait=wait)
    split = ByHash("row", valid=0.001, test=0.001)
    table = declared(tmp_path, raw, [late], split, time_unit="us", as_of="1970-01-21")
    found = pl.read_parquet(prepare_table(table, tmp_path / "prepared") / "train.parquet")
    waited = late.wait_us / DAY
    true = rate * (1 - np.exp(-7 / mean))
    p_dp = rate * (np.exp(-waited / mean) - np.exp(-7 / mean))
    p_rn = (1 - true) / (1 - true + p_dp)

    def share(rows, of_negatives=1.0):
        positive = rows.filter(pl.col("buy") == 1)["buy_known"].sum()
        return positive / (positive + of_negatives * rows.filter(pl.col("buy") == 0)["buy_known"].sum())

    five_sigma = 5 * np.sqrt(true * (1 - true) / (num_rows * 13 / 20))
    assert share(found, p_rn) == pytest.approx(true, abs=five_sigma)
    assert share(found) == pytest.approx(true / (1 + p_dp), abs=five_sigma)
    for task, rate_of in (("buy_delayed", p_dp), ("buy_real_negative", p_rn)):
        known = found.filter(pl.col(f"{task}_known") == 1)
        assert known[task].mean() == pytest.approx(rate_of, abs=five_sigma)
    ignoring = (happens & (delay <= 7) & (day + delay <= 20)).mean()
    assert ignoring < true - 2 * five_sigma


WRONG = {
    "a purchase before its row": ("bought_at", at(4.5), "'2026-11-05T12:00:00') must not be before that of the row"),
    "a purchase before its click": ("clicked_at", at(6.5), "'2026-11-07T00:00:00') must not be before that of 'click'"),
    "a purchase without a time": ("bought_at", None, "None) must be given, since 'buy' happened"),
    "a time without a purchase": ("buy", 0, "'2026-11-07T00:00:00') must be missing, since 'buy' did not happen"),
    "a time that does not parse": ("bought_at", "soon", "'soon' must be a time"),
}


@pytest.mark.parametrize(("column", "value", "sentence"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("quarantine", [False, True])
def test_label_times_that_cannot_be_are_one_sentence(tmp_path, column, value, sentence, quarantine):
    rows = [(float(day), 1, 1.0) for day in range(30)]
    raw = log(rows).with_columns(clicked_at=pl.col("at"))
    raw = raw.with_columns(
        pl.col(name).dt.to_string("iso").str.replace(" ", "T") for name in ("bought_at", "clicked_at")
    )
    value = value.isoformat() if isinstance(value, datetime) else value
    raw = raw.with_columns(pl.when(pl.col("row") == 5).then(pl.lit(value)).otherwise(column).alias(column))
    table = declared(tmp_path, raw, [Delay("click", time="clicked_at", window="1d"), MASK])
    where = f"{tmp_path}/raw.parquet: column 'bought_at', row 5 (counted from 0): "
    if quarantine:
        out = prepare_table(table, tmp_path / "prepared", bad_rows="quarantine")
        assert sentence in (out / "bad_rows.tsv").read_text()
        return
    with pytest.raises(InputError) as found:
        prepare_table(table, tmp_path / "prepared")
    assert str(found.value).startswith(where)
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Delay("buy", time="t", window="soon"), r"`window` of the delay of `buy` \(='soon'\) must be"),
        (lambda: Delay("buy", time="t", window="7d", policy="wait"), r"`policy` of the delay of `buy` \(='wait'\)"),
        (
            lambda: Delay("buy", time="t", window="7d", wait="1h"),
            r"`wait` of the delay of `buy` \(='1h'\) must be given for",
        ),
        (lambda: Delay("buy", time="t", window="7d", policy="correct"), r"`wait` .*\(=None\) must be given for policy"),
        (lambda: Delay("buy", time="t", window="7d", policy="correct", wait="7d"), r"must be shorter than `window`"),
        (lambda: Delay("buy", time="t", window=7), r"`window` \(=7\) must be of type str"),
    ],
)
def test_a_wrong_delay_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


LATE_CLICK = Delay("click", time="clicked_at", window="1d")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"delays": MASK}, r"`delays` \(a Delay\) must be of type list of Delay"),
        ({"delays": [Delay("byu", time="t", window="7d")]}, r"task 'byu' must be one of .*; the nearest is 'buy'"),
        ({"delays": [MASK, MASK]}, r"`delays` must have one a task, not \['buy', 'buy'\]"),
        ({"delays": [LATE_CLICK]}, r"`delays` must have one of 'buy', since 'click', which it needs, has one"),
        (
            {"delays": [Delay("click", time="t", window="1d", policy="correct", wait="1h"), MASK]},
            r"delay of 'click' must have policy 'mask', since 'buy' needs it",
        ),
        ({"delays": [MASK], "time": None}, "`time` must name the column from which delays are counted"),
        ({"as_of": "2026-11-08"}, r"`as_of` \(='2026-11-08'\) must not be given without `delays`"),
        ({"delays": [MASK], "as_of": "now"}, r"`as_of` \(='now'\) must be a time such as"),
        (
            {
                "delays": [MASK],
                "fields": [Hashed("item", num_buckets=9), History("bought", "item", last=3, where="buy")],
            },
            "history 'bought' must not list rows by 'buy', which is not known yet at their time",
        ),
        (
            {"delays": [CORRECT], "fields": [Hashed("buy_delayed", num_buckets=9)]},
            "column 'buy_delayed' .* once, not 2 times",
        ),
    ],
)
def test_delays_that_do_not_fit_the_table_are_refused(arguments, sentence):
    given = {
        "fields": [Hashed("item", num_buckets=9)],
        "time": "at",
        "group": "item",
        "split": ByHash("item"),
        **arguments,
    }
    with pytest.raises(InputError, match=sentence):
        Table("shop", "raw.parquet", FUNNEL, **given)


@pytest.mark.parametrize(("delay", "as_of"), [(MASK, "2026-11-07"), (CORRECT, "2026-11-07"), (CORRECT, None)], ids=str)
def test_a_log_shorter_than_the_window_is_refused(tmp_path, delay, as_of):
    rows = [(float(day), 1, 1.0) for day in (range(30) if as_of else [*range(6), 21, 23])]
    with pytest.raises(
        InputError, match=r"must be at least `window` \(='7d'\) of the delay of 'buy': no label is known"
    ):
        prepared(tmp_path, log(rows), [delay], as_of=as_of)


def test_corrected_labels_are_trained_with_no_other_loss():
    tasks = TaskForest(*FUNNEL.tasks, Task("buy_delayed", after="click"), Task("buy_real_negative"))
    schema = Schema("shop", [Field("item", 9)], tasks)

    def build(*overrides):
        return build_model(make_config(SYSTEMS["shared_bottom"], PAPER, overrides), schema, torch.device("cpu"))

    assert isinstance(build("loss=delayed").loss, DelayedLoss)
    with pytest.raises(InputError, match=r"`loss` \(=CrossEntropyLoss\) must be one such as 'delayed'"):
        build()
