"""The picture of runs: read from the figure itself, at the width of a phone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from torchrec_mtl.jobs import pictures
from torchrec_mtl.jobs.results import ModelReport
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.run_picture import draw
from torchrec_mtl.metrics import CalibrationCurve
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.result import TrainingResult

TASKS = TaskChain(["click", "cart", "purchase"])
SHARES = {"click": 0.2, "cart": 0.05, "purchase": 0.01}
STEPS = range(10, 90, 10)


def report(name, seed):
    def row(task, metric, value, **further):
        return {**further, "task": task, "space": "impressions", "metric": metric, "value": value}

    history = [row(task, "auc", 0.6 + step / 1000 + seed / 100, step=step) for step in STEPS for task in TASKS]
    figures = {"num_rows": lambda _: 1000, "positives": lambda task: 1000 * SHARES[task], "calibration": lambda _: 1.5}
    test = [row(task, metric, value(task)) for task in TASKS for metric, value in figures.items()]
    rates = torch.tensor([0.0, 0.1, 0.2])
    curve = CalibrationCurve(rates + 0.01, rates, torch.ones(3))
    return ModelReport(RunConfig(SYSTEMS[name]), TrainingResult(history), 1, test, dict.fromkeys(TASKS, curve))


@pytest.fixture
def figure():
    reports = {SYSTEMS[name].title: [report(name, seed) for seed in (0, 1, 2)] for name in ("tafe", "bpcm")}
    drawn = draw(reports, TASKS, "auc", "AUC")
    drawn.canvas.draw()
    yield drawn
    pictures.plt.close(drawn)


def axes_with(figure, label):
    return [axis for axis in figure.axes if label in (axis.get_xlabel(), axis.get_ylabel())]


def test_validation_has_every_point_a_band_over_seeds_and_one_scale(figure):
    panels = axes_with(figure, "optimizer step")
    assert [axis.get_title() for axis in panels] == list(TASKS)
    for axis in panels:
        for line in axis.get_lines():
            assert list(line.get_xdata()) == list(STEPS)
            np.testing.assert_allclose(line.get_ydata(), [0.61 + step / 1000 for step in STEPS])
        (first, second) = axis.collections
        for band in (first, second):
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((0.61, 0.70))
    assert len({axis.get_xlim() for axis in panels}) == 1
    spans = [high - low for low, high in (axis.get_ylim() for axis in panels)]
    assert spans == pytest.approx([spans[0]] * len(panels))


def test_curves_of_different_levels_have_the_scale_of_the_widest():
    made, rows = pictures.figure([1.0])
    axes = pictures.panels(rows, 2, same_values=False)
    for axis, values in zip(axes, ([0.8, 0.81], [0.6, 0.7]), strict=True):
        axis.plot(values)
    pictures.same_span(axes)
    (low, high), (wide_low, wide_high) = (axis.get_ylim() for axis in axes)
    assert high - low == pytest.approx(wide_high - wide_low)
    assert low < 0.8 < 0.81 < high
    assert wide_low < 0.6 < 0.7 < wide_high
    pictures.png(made)


def test_calibration_leaves_out_bins_without_positives_and_has_one_scale(figure):
    panels = axes_with(figure, "predicted probability")
    assert len(panels) == len(TASKS)
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in panels}) == 1
    seeds = [line for line in panels[0].get_lines() if line.get_marker() == "o"]
    assert len(seeds) == 6
    assert all(np.allclose(line.get_ydata(), [0.1, 0.2]) for line in seeds)


def test_the_funnel_has_what_was_logged_and_what_is_predicted(figure):
    (axis,) = [axis for axis in figure.axes if axis.patches]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(list(SHARES.values()))
    for line in axis.get_lines():
        np.testing.assert_allclose(line.get_xdata(), [1.5 * share for share in SHARES.values()])


def test_there_is_one_legend_outside_and_text_is_legible_on_a_phone(figure):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["TAFE", "BPCM"]
    assert not any(axis.get_legend() for axis in figure.axes)
    below = legend.get_window_extent().y0
    assert all(axis.get_tightbbox().y1 <= below + 1 for axis in figure.axes)
    scale = 390 / figure.bbox.width  # to pixels of a phone
    drawn = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, *axis.get_yticklabels())]
    heights = [text.get_window_extent().height * scale for text in drawn if text.get_text()]
    assert min(heights) > 6.5  # of letters without ascenders


def test_without_figures_of_the_test_split_there_is_no_funnel():
    bare = [replace(report("tafe", 0), test=[], curves={})]
    drawn = draw({"TAFE": bare}, TASKS, "auc", "AUC")
    assert not [axis for axis in drawn.axes if axis.patches]
    assert pictures.png(drawn).startswith(b"\x89PNG")
