"""Test runs of guide and model that count the bytes of their tensors. These bytes determine the batch size."""

from typing import Any

import pyro
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae._waist.densities import log_guide, log_joint
from pyrovae._waist.draws import run_guide, run_model
from pyrovae._waist.weights import weigh
from pyrovae.evaluation.probe.facts import MemoryUse
from pyrovae.evaluation.probe.trials import Reference, Trials

FEW = 3  # number of data in the first of these runs
MOST = 192  # number of data in the last of these runs
COUNTED = 11  # number of draws in a run; few programs have another dimension of this size


def memory_use(trials: Trials, one: Reference, memory: int, *, cuttable: bool, vectorize: bool) -> MemoryUse:
    """Run guide and model, and return the bytes of the tensors that they create, per datum and draw.

    Some tensors of a model have the same size in every run, such as the encodings of a VampPrior's pseudo-inputs. In a
    run on few data, each log-weight would get a large share of them. If most of the model's bytes do not grow with the
    number of draws, further runs, each on twice as many data, therefore follow.

    Args:
        trials: Runs of the programs.
        one: The first test run.
        memory: Bytes that the tensors of a run may occupy. The further runs end before their tensors reach this limit,
            apart from tensors that never grow.
        cuttable: True if the program runs on any number of data.
        vectorize: True if many draws are made in one run.
    """
    size = trials.few(FEW, cuttable=cuttable)
    plate = one.weights.plate._replace(size=size if cuttable else one.weights.plate.size)
    draws = COUNTED if vectorize else 1
    guide, model = _count(trials, one, plate, size, vectorize=vectorize)
    most = min(MOST, len(trials.finite)) if cuttable else 0
    rows, first = plate.size, model.total
    while 2 * rows <= most and 2 * model.fixed > model.total and 4 * (model.total - first) < memory:
        try:
            _, model = _count(trials, one, plate._replace(size=2 * rows), 2 * rows, vectorize=vectorize)
        except Exception:  # the evaluation reports a datum that the program cannot score
            break
        rows *= 2
    return MemoryUse(
        per_weight=max(1, int((guide.total * rows / plate.size + model.total) / draws / rows)),
        guide_per_datum=guide.fixed / plate.size,
        guide_per_draw=max(1.0, guide.drawn / draws / plate.size),
        model_per_draw=max(1.0, model.total / draws / rows),
    )


def _count(
    trials: Trials, one: Reference, plate: CondIndepStackFrame, size: int, *, vectorize: bool
) -> tuple["CountBytes", "CountBytes"]:
    """Run guide and model on ``size`` data, and return the bytes of the guide's and of the model's tensors."""
    args = trials.args(size)
    nesting, draws = (one.nesting, COUNTED) if vectorize else (None, 1)
    options: Any = {"kwargs": trials.options["kwargs"], "nesting": nesting}
    with pyro.validation_enabled(False):
        with CountBytes(draws) as guide:
            drawn = run_guide(trials.guide, args, draws, depth=one.depth, **options)
            if not one.enumerates:
                log_guide(drawn, plate)
        with CountBytes(draws) as model:
            if one.enumerates:
                sites = run_model(trials.model, args, drawn.values, draws, drawn_with=drawn, **options)
                weigh(sites, drawn, plate=plate.name)
            else:
                log_joint(trials.model, args, drawn.values, draws, plate=plate, **options)
    return guide, model


class CountBytes(TorchFunctionMode):
    """Context manager that sums the sizes of all new tensors, an upper bound on the memory in use at any time.

    Args:
        draws: Number of draws. A tensor with a dimension of this size is assumed to hold draws.

    Attributes:
        drawn: Bytes of the tensors that hold draws.
        fixed: Bytes of all other tensors.
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws, self.drawn, self.fixed = draws, 0, 0

    @property
    def total(self) -> int:
        """Bytes of all new tensors, the sum of ``drawn`` and ``fixed``."""
        return self.drawn + self.fixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not torch.is_grad_enabled():  # a guide's gradient steps release their tensors
            shared = any(isinstance(arg, Tensor) and arg.data_ptr() == result.data_ptr() for arg in args)
            size = 0 if shared else result.nbytes  # a view needs no memory
            if self.draws in result.shape:
                self.drawn += size
            else:
                self.fixed += size
        return result
