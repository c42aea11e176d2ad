"""What several processes compute together is what one computes."""

from typing import Any

import pyro
import torch
from torch import Tensor

import pyrovae as pv
from tests.conftest import small_vae
from tests.processes import in_each

Outcome = tuple[dict[str, Tensor], dict[str, list[float]]] | str


def run_example(make: Any, **options: Any) -> Outcome:
    """Trains an example; what it is then and its learning curves, or why it is refused."""
    pyro.clear_param_store()
    torch.manual_seed(7)
    made = make()
    data = tuple(torch.cat(parts) for parts in zip(*made.batches, strict=True))
    size = len(made.batches[0][0]) - 1  # so that a single datum is left over, or two
    usual = {"epochs": 2, "batch_size": size, "learning_rate": 0.01, "kl_warmup": 2, "seed": 3, "progress": False}
    try:
        history = pv.fit(made.module, data, data, objective=made.objective, **{**usual, **options})
    except Exception as error:
        return str(error)
    return made.module.state_dict(), {"train": history.train, "valid": history.valid}


def run_components(names: list[str]) -> list[Outcome]:
    from tests.examples import BY_COMPONENT

    return [run_example(BY_COMPONENT[name]) for name in names]


def run_objectives(names: list[str]) -> list[Outcome]:
    from tests.examples import OBJECTIVES, binary, example

    return [run_example(lambda name=name: example(small_vae(), binary(8, 6), objective=OBJECTIVES[name]())) for name in names]
