"""``fit``: trains a module."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn
from tqdm.auto import tqdm

from pyrovae import parallel
from pyrovae._compilation.precision import Precision, check_precision
from pyrovae._warnings import find_stack_level
from pyrovae.arguments import Data, as_device, as_tensors, fingerprint
from pyrovae.isolation import seeded
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.description import Description, as_number, of_module, of_object, of_trained, plain
from pyrovae.training.history import History
from pyrovae.training.losses import Bound, Criterion, OwnLoss
from pyrovae.training.options import check_options
from pyrovae.training.report import Watching
from pyrovae.training.run import Plan, Run
from pyrovae.training.steps import NonFinite, Steps, Transform
from pyrovae.training.tensorboard import Board, Writer


def fit(
    module: nn.Module,
    train: Data,
    valid: Data | None = None,
    *,
    objective: ELBO | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    kl_warmup: int = 0,
    transform: Transform | None = None,
    patience: int | None = None,
    compile: bool = False,  # noqa: A002  # as torch calls it
    precision: Precision | None = None,
    clip_norm: float | None = None,
    on_nonfinite: NonFinite = "raise",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    checkpoint_wait: float = 0.0,
    seed: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
    tensorboard: str | Path | Writer | None = None,
    tensorboard_every: int = 10,
) -> History:
    """Trains a module's Pyro ``model`` and ``guide`` by stochastic variational inference, or its ``loss`` as it is.

    Data, model and guide are checked once, on all data, before the first step; Pyro's validation is off from then on.
    Modules train in the mode, ``train()`` or ``eval()``, in which they are. With validation data the best weights are
    restored at the end. Ctrl-C ends training, not the script: what was trained so far is in the module and in the
    returned history.

    With a folder for checkpoints, the same call goes on from the last one, after whatever ended the run, and with more
    epochs than it had, beyond its end. On a CPU the parameters are then, bit for bit, those of a run that was never
    interrupted. Ctrl-C and SIGTERM let the step in progress end and save before they stop the run; a SIGTERM then takes
    its usual course, the end of the process.

    In processes that have joined (:mod:`pyrovae.parallel`), each takes a share of every batch, and all end alike. What
    would be another number there is refused: objectives that are no sum over the data, batch normalization, sites
    outside the data plate, parameters of ``pyro.param``.

    Args:
        module: Has ``model(*data)`` and ``guide(*data)``: a :class:`pyrovae.VAE`, or any module of your own. Parameters
            that the programs make with ``pyro.param`` are trained too. Or has ``loss(*data)``, a mean over the data, as
            :class:`pyrovae.autoencoders.Autoencoder`; what is said of bounds is then true of minus the loss.
        train: Training data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension, which the
            programs get as several arguments. Kept on the device.
        valid: Validation data, likewise.
        objective: A Pyro ELBO, :class:`pyrovae.objectives.IWAE` among them; by default ``Trace_ELBO()``. Not those that
            Pyro compiles (``JitTrace_ELBO``), which look parameters up in the global store.
        epochs: Passes over the training data, at most.
        batch_size: Data per step; the last batch of an epoch may be shorter, and none is dropped.
        learning_rate: Given to the optimizer as ``lr``.
        optimizer: Called as ``optimizer(parameters, lr=learning_rate)``; by default one fused Adam for all parameters.
        scheduler: Called on the optimizer; the schedule that it returns makes a step after every epoch. A
            ``ReduceLROnPlateau`` is given minus the bound, which it is to minimize.
        kl_warmup: Number of epochs over which the weight of the latent sites grows linearly to 1.
        transform: Applied to the tensors of every training batch on the device, such as :func:`pyrovae.data.binarize`.
        patience: Stop after so many epochs without a better bound on the validation data.
        compile: Whether to run the programs once, write them down as a graph, backward pass included, and train with
            the graph compiled by torch's inductor, which takes 5 to 40 seconds for each shape of batch and pays from
            some thousands of steps. The same noise, gradients to rounding error; numbers and branches that the programs
            compute in Python stay as they were in that run. On CUDA the graph is captured, and so is the step of a
            fused Adam or AdamW, and of torch's optimizers made with ``capturable=True``. What cannot be compiled is
            trained without, after a warning that says why.
        precision: Of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``; everything
            else, and parameters, stay as they are. By default torch's own setting.
        clip_norm: Scale gradients whose norm, over all parameters, is larger than that down to it.
        on_nonfinite: What to do if a loss or gradient is NaN or infinite. ``"raise"``: stop, leaving the module as it
            was before that step. ``"skip"``: leave such steps out and count them in the history, for which all steps
            are looked at; on CUDA the host then waits for each.
        checkpoint: Folder in which to keep the last two checkpoints, of this run alone: parameters, those made by
            ``pyro.param`` too, optimizer, schedule, generators (torch, NumPy, Python), history, best weights, and what
            is trained on what, with checksums. A file that is damaged is set aside with a warning, and the one before
            is taken. What Python objects keep beside tensors is not held, nor are generators of your own.
        checkpoint_every: Epochs between two checkpoints; one is written at the end in any case.
        checkpoint_wait: Seconds to wait for another run that uses the folder, before the call is refused. ``math.inf``
            waits until the other run ends.
        seed: Makes a run on a CPU repeat bit for bit, and leaves the global generators alone; without one, noise and
            order come from the global generators.
        device: ``"auto"`` is a CUDA device if there is one, else the CPU.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.
        tensorboard: Folder in which to write for TensorBoard (``pip install 'pyrovae[tensorboard]'``), of this run
            alone, or a ``torch.utils.tensorboard.SummaryWriter``. Every epoch's history and the norm of its last
            gradient; histograms of parameters and gradients; where data are images, those of the validation data above
            their reconstructions, and draws from the prior. The run has the same numbers with and without.
        tensorboard_every: Epochs between two sets of histograms and images.

    Returns:
        The history, in nats per datum.

    Raises:
        TypeError: If the module has neither model and guide nor a loss, data are not floating-point tensors, or a count
            is no integer.
        ValueError: If data are empty, not finite, of different lengths or outside the likelihood's support; if model
            and guide disagree; if an option is out of range; if the device is not there; if a module with a loss of its
            own is given an objective or a KL warm-up; if the checkpoints are of another run (module, data, objective or
            options, but for ``epochs``, ``patience``, ``compile``, ``on_nonfinite``, ``checkpoint_every``, ``device``,
            ``progress``, ``tensorboard`` and ``tensorboard_every``), or none of them can be read.
        DivergenceError: A FloatingPointError, if the loss, its gradient, a parameter or the bound on the validation
            data is not finite. It says where for the first time, and has the ``history`` until then.
        ModuleNotFoundError: If TensorBoard is to be written for and is not installed.
        OSError: If TensorBoard's folder cannot be written to at the beginning; later that is a warning.
        CheckpointError: An OSError, if a checkpoint cannot be written, or if another run uses the folder. The weights
            are in the module then, the error has the ``history``, and the previous checkpoint is whole.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(200, 4), epochs=2, seed=0)
        >>> len(history.train)
        2
    """
    learning_rate, clip_norm, seed, patience = map(as_number, (learning_rate, clip_norm, seed, patience))
    epochs, batch_size, kl_warmup = map(as_number, (epochs, batch_size, kl_warmup))
    checkpoint_every, tensorboard_every = as_number(checkpoint_every), as_number(tensorboard_every)
    check_options(
        module,
        valid,
        objective,
        learning_rate=learning_rate,
        patience=patience,
        kl_warmup=kl_warmup,
        clip_norm=clip_norm,
        on_nonfinite=on_nonfinite,
        epochs=epochs,
        batch_size=batch_size,
        checkpoint_every=checkpoint_every,
        tensorboard_every=tensorboard_every,
    )
    board = None if tensorboard is None or not parallel.is_first() else Board(tensorboard, tensorboard_every)
    where = as_device(device)
    train_data = tuple(tensor.to(where) for tensor in as_tensors("train", train))
    valid_data = None if valid is None else tuple(tensor.to(where) for tensor in as_tensors("valid", valid))
    parallel.check_same("data of a training", (*train_data, *(valid_data or ())))
    module.to(where)
    check_precision(precision, where)
    plan = Plan(train_data, valid_data, transform, epochs, batch_size, kl_warmup, patience)
    criterion = _criterion(module, objective, precision)
    with seeded(seed):
        steps = Steps(module, criterion, batch_size, clip_norm, skip=on_nonfinite == "skip")
        steps.check(train_data, transform)
        if valid_data is not None:
            steps.check(valid_data)
        if not steps.parameters:
            raise ValueError(f"{type(module).__name__} has no parameter to train; unfreeze some with requires_grad_()")
        make_optimizer = optimizer or partial(torch.optim.Adam, fused=True)
        steps.optimizer = make_optimizer(steps.parameters.values(), lr=learning_rate)
        schedule = None if scheduler is None else scheduler(steps.optimizer)
        if parallel.size() > 1:
            steps.share_out(train_data, transform)
            if compile and parallel.is_first():
                warnings.warn(
                    "several processes train without compilation, which is for one alone", stacklevel=find_stack_level()
                )
        elif compile:
            steps.compile(weighted=kl_warmup > 0)
        checkpoints = None
        if checkpoint is not None:
            options = {"learning_rate": learning_rate, "precision": precision, "clip_norm": clip_norm, "seed": seed}
            changeable = {"epochs": epochs, "patience": patience, "compile": compile, "device": str(where)}
            changeable["processes"] = parallel.size()
            description = _describe(steps, plan, schedule, options)
            checkpoints = Checkpoints(checkpoint, checkpoint_every, description, changeable, checkpoint_wait)
        hidden = None if progress and parallel.is_first() else True  # None: where the output is no terminal
        with (
            pyro.validation_enabled(False),
            tqdm(total=epochs * plan.steps, unit="step", desc=criterion.name, disable=hidden) as bar,
            checkpoints or nullcontext(),
        ):
            run = Run(plan, steps, schedule, checkpoints, Watching(bar, board))
            run()
        steps.settle()
    return run.history


def _criterion(module: Any, objective: ELBO | None, precision: Precision | None) -> Criterion:
    if hasattr(module, "model"):
        return Bound(module, Trace_ELBO() if objective is None else objective, precision)
    return OwnLoss(module, precision)


def _describe(steps: Steps, plan: Plan, schedule: Any, options: Description) -> Description:
    """What a checkpoint must be of for a run to go on from it."""
    data = {"train": plan.train} | ({} if plan.valid is None else {"valid": plan.valid})
    stored = {name: str(tuple(tensor.shape)) for name, tensor in steps.tensors.stored.items()}
    return {
        "module": of_module(steps.module),
        **stored,
        "loss": of_object(getattr(steps.criterion, "objective", steps.criterion)),
        "optimizer": _of_optimizer(steps.optimizer),
        "trained": of_trained(steps.optimizer, steps.parameters),
        "schedule": None if schedule is None else {"type": type(schedule).__name__, **plain(schedule.state_dict())},
        "batch_size": plan.batch_size,
        "kl_warmup": plan.kl_warmup,
        "transform": plain(plan.transform),
        **options,
        **{
            f"{name} data": {"shapes": plain([tensor.shape for tensor in tensors]), "SHA-1": fingerprint(tensors)}
            for name, tensors in data.items()
        },
    }


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Description:
    """Its type, its numbers, and those that a group of parameters has instead."""
    described: Description = {"type": type(optimizer).__name__, **plain(optimizer.defaults)}
    for index, group in enumerate(optimizer.param_groups):
        own = plain({name: value for name, value in group.items() if name not in ("params", "initial_lr")})
        if own := {name: value for name, value in own.items() if described.get(name) != value}:
            described[f"group {index}"] = own
    return described
