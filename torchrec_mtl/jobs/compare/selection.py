"""What a trained TAFE selects: the data of TAFE figure 7."""

from dataclasses import dataclass

import numpy as np
import torch

from torchrec_mtl.data import load_schema
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.compare.runs import Run
from torchrec_mtl.jobs.datasets import open_split
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.single_run import loader
from torchrec_mtl.models import TAFE
from torchrec_mtl.modules import DynamicSelector, RepresentationGenerator, SmoothStepSchedule
from torchrec_mtl.training.checkpoint import best_checkpoint, load_weights
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import default_device, process_group

MAX_SAMPLES = 20_000


@dataclass(frozen=True)
class Selection:
    """Selections for N samples of the validation split.

    Args:
        selected: whether each inducing point is selected (``z > 0``), ``[N, K]``.
        plane: first two principal components of the samples' last representation, averaged over its rows, ``[N, 2]``.
        schedule: schedule of the smooth step.
    """

    selected: np.ndarray
    plane: np.ndarray
    schedule: SmoothStepSchedule

    @property
    def rate(self) -> np.ndarray:
        """Share of the inducing points that each sample selects, ``[N]``."""
        return self.selected.mean(1)


@torch.no_grad()
def read_selection(run: Run) -> Selection:
    """Applies the trained model of ``run``, a TAFE that kept its weights, to samples of the validation split."""
    assert isinstance(run.config, RunConfig)
    device = default_device()
    schema = load_schema(run.dataset)
    with process_group(device):
        train_model = build_model(run.config, schema, device)
        distributed, _ = distribute(train_model, run.config.training, device)
        load_weights(distributed, best_checkpoint(run.directory / "checkpoints"))
        model = train_model.eval().get_submodule("model")
        assert isinstance(model, TAFE)
        generator = model.over_arch.get_submodule("extraction.generator")
        assert isinstance(generator, RepresentationGenerator)  # the run is no ablation: it selects
        selections, representations, num_samples = [], [], 0
        for batch in loader(open_split(run.dataset, "valid", schema), 2048, shuffle=True, with_groups=False):
            batch = batch.to(device)
            fields = model.embed(batch.dense_features, batch.sparse_features)
            of_layers = generator.select(fields)
            selections.append(of_layers[0] > 0)
            representations.append(generator(fields)[len(of_layers) - 1].mean(1))
            num_samples += len(fields)
            if num_samples >= MAX_SAMPLES:
                break
    embedded = torch.cat(representations).double()
    _, _, directions = torch.linalg.svd(embedded - embedded.mean(0), full_matrices=False)
    plane = (embedded - embedded.mean(0)) @ directions[:2].T
    schedule = next(m.per_step() for m in generator.modules() if isinstance(m, DynamicSelector))
    return Selection(torch.cat(selections).cpu().numpy(), plane.cpu().numpy(), schedule)
