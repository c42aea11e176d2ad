"""The description of a run, by which a run recognizes its own checkpoints."""

from typing import Any

from pyrovae.training.description import Description, of_module, of_object, of_optimizer, of_trained, plain
from pyrovae.training.losses import Loss
from pyrovae.training.run import Plan
from pyrovae.training.run_state import RunState


def describe_run(
    loss: Loss, state: RunState, plan: Plan, parameters: dict[str, Any], options: Description
) -> Description:
    """Return the description of a run. A run continues only from a checkpoint with the same description."""
    sources = {"train": plan.train.source} | ({} if plan.valid is None else {"valid": plan.valid.source})
    stored = {name: str(tuple(tensor.shape)) for name, tensor in state.tensors.stored.items()}
    schedule = state.schedule
    return {
        "module": of_module(state.tensors.module),
        **stored,
        "loss": of_object(getattr(loss, "objective", loss)),
        "optimizer": of_optimizer(state.optimizer),
        "trained": of_trained(state.optimizer, parameters),
        "schedule": None if schedule is None else {"type": type(schedule).__name__, **plain(schedule.state_dict())},
        "scheduler_step": plan.scheduler_step,
        "batch_size": plan.train.size,
        "accumulate": plan.train.accumulate,
        "kl_warmup": plain(plan.kl_warmup),
        "transform": plain(plan.train.transform),
        **options,
        **{f"{name} data": plain(source.describe()) for name, source in sources.items()},
    }
