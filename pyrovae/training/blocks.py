"""Blocks of training steps, each launched as one CUDA graph.

On a GPU, a compiled step of a small network takes less time than the Python code around it, which chooses the batch,
launches the graphs of the step and sums the losses. The CUDA graph of a block does all of this for several steps. It
reads the order of the data and the weights of the latent sites from tensors on the device. The graph itself advances
the position in these tensors. Its random operations draw the same numbers as those of single steps.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyrovae._compilation.cuda_graphs import capture
from pyrovae._warnings import find_stack_level
from pyrovae.arguments import as_tuple
from pyrovae.data import binarize
from pyrovae.training.batches import Batches
from pyrovae.training.captured_step import CapturableOptions
from pyrovae.training.data import DataInMemory
from pyrovae.training.gradients.compiled import CompiledGradients
from pyrovae.training.losses import Loss
from pyrovae.training.optimizers import Optimizer
from pyrovae.training.state import Progress, Tensors, generator_states, restore_generators
from pyrovae.training.steps import Step

LENGTH = 16
"""Number of steps in a block."""
TOLERANCE = 1e-3  # relative difference between a replayed block and single steps that rounding may cause


class Blocks:
    """Blocks of training steps, each launched as one CUDA graph.

    The first block is made twice from the same state: by single steps, and by the captured graph. Both must give the
    same losses, parameters and states of the random generators. If they do not, or if the capture fails, a warning
    names the reason, and the run makes only single steps.

    Args:
        batches: Batches of the training data.
        data: The training data.
        loss: Loss to minimize.
        gradients: Compiled gradients of the loss.
        optimizer: Optimizer that changes the parameters.
        options: Options of this optimizer.
        tensors: Parameters and buffers of the module, and parameters of Pyro's store.
    """

    def __init__(
        self,
        batches: Batches,
        data: DataInMemory,
        loss: Loss,
        gradients: CompiledGradients,
        optimizer: Optimizer,
        options: CapturableOptions,
        tensors: Tensors,
    ) -> None:
        self.batches, self.data, self.loss, self.tensors = batches, data, loss, tensors
        self.gradients, self.optimizer, self.options = gradients, optimizer, options
        device = data.device
        self._offsets = torch.arange(batches.size, device=device)
        self._order = torch.arange(len(data), device=device)
        self._weights = torch.ones(batches.steps, dtype=torch.float64, device=device)
        self._step = torch.zeros((), dtype=torch.long, device=device)
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._loaded: Tensor | None = None
        self._launch: Callable[[], None] | None = None
        self._captured: Any = None
        self._slopes: list[tuple[Tensor, Tensor | None]] = []
        self.has_failed = False

    def are_possible(self, now: Progress) -> bool:
        """Return whether the next steps of the epoch can be made as a block.

        The epoch must have enough full batches left. The gradient of a full batch must be compiled, and no comparison
        with the programs may be due, because only single steps compile and compare. After a block has failed, no
        further block is made.
        """
        fits = now.step + LENGTH <= len(self.data) // self.batches.size
        is_ready = self.gradients.is_settled and self.gradients.replays(self.batches.size)
        return fits and is_ready and not self.has_failed

    def make(self, now: Progress, weights: Sequence[float]) -> bool:
        """Make a block of steps, and update the progress of the epoch.

        Args:
            now: Progress of the epoch.
            weights: Weight of the latent sites at each step of the epoch.

        Returns:
            True if the block was made. False if its CUDA graph could not be captured, or gave other results than single
            steps. In this case, the state of the run is unchanged.
        """
        self._load(now, weights)
        if self._launch is None or self._captured != self._reads():
            if not self._prepare():
                return False
        else:
            self.options.write_rates()
            self._launch()
        for parameter, slope in self._slopes:
            parameter.grad = slope
        now.total = self._total
        now.seen += LENGTH * self.batches.size
        now.step += LENGTH
        self.gradients.comparison.calls += LENGTH
        return True

    def _load(self, now: Progress, weights: Sequence[float]) -> None:
        """Write the order of the data, the weights, the step and the sum of the losses into the graph's tensors."""
        if now.order is not self._loaded and now.order is not None:
            self._order.copy_(now.order)
            self._weights.copy_(torch.tensor(weights, dtype=torch.float64))
            self._loaded = now.order
        self._step.fill_(now.step)
        self._total.copy_(torch.as_tensor(now.total))

    def _reads(self) -> Any:
        """Return the options of the optimizer and the addresses of tensors that a CUDA graph keeps from its capture."""
        tensors = (*self.options.tensors(), *self.data.tensors)
        return self.options.fixed(), [tensor.data_ptr() for tensor in tensors]

    def _steps(self) -> None:
        """Make the steps of a block, one after the other.

        A CUDA graph records this method. Numbers that change between steps or blocks are therefore read from tensors.
        """
        parameters = self.gradients.parameters
        for _ in range(LENGTH):
            self.optimizer.zero_grad()
            indices = self._order[self._step * self.batches.size + self._offsets]
            batch = tuple(tensor[indices] for tensor in self.data.tensors)
            if self.batches.transform is not None:
                batch = as_tuple(self.batches.transform(*batch))
            weight = self._weights.index_select(0, self._step.view(1)).squeeze(0)  # [] would read the index on the CPU
            loss = self.gradients.launch(batch, weight)
            self.optimizer.step(parameters)
            self._total.add_(loss, alpha=self.batches.size / self.loss.data_count(batch))
            self._step.add_(1)

    def _prepare(self) -> bool:
        """Capture a block as a CUDA graph, launch the graph, and return whether its result is that of single steps.

        If the results differ, or after an error, restore the state before the block, and warn.
        """
        self._launch = None
        generators = generator_states()
        before: list[Tensor] = []
        try:
            before = self._state()
            with self.options.capturable(), _without_waiting(self.data.device):
                self._steps()  # an operation that waits for the device raises an error here, before a capture
            made, drawn = self._state(), generator_states()
            self._restore(before, generators)
            gc.collect()  # a graph of an earlier run must not be destroyed during the capture
            with self.options.capturable():
                self._launch, _ = capture(self._steps, self.data.device)
            restore_generators(generators)
            self._captured = self._reads()
            self._slopes = [(parameter, parameter.grad) for parameter in self.gradients.parameters.values()]
            self._launch()
            is_same_noise = _equal(drawn, generator_states())
            reason = self._difference(before, made) if is_same_noise else "the random generators end in another state"
        except Exception as error:  # an error of the programs is raised again by a single step
            reason = str(error.__context__ or error).split("\n")[0] or type(error).__name__
        if reason is not None:
            self._restore(before, generators)
            self.has_failed, self._launch, self._slopes = True, None, []
            warnings.warn(
                f"fit launches each step by itself, because a CUDA graph of {LENGTH} steps cannot repeat the steps: "
                f"{reason}. The results are the same.",
                stacklevel=find_stack_level(),
            )
        return reason is None

    def _difference(self, before: list[Tensor], made: list[Tensor]) -> str | None:
        """Return how the current state differs from ``made``, the state after single steps; None if they agree."""
        for place, (found, expected, start) in enumerate(zip(self._changed(), made, before, strict=True)):
            if torch.equal(found, expected):
                continue
            change = (expected.double() - start.double()).norm()
            if not (found.double() - expected.double()).norm() <= TOLERANCE * change and change.isfinite():
                return "the losses differ" if place == 0 else "the parameters differ"
        return None

    def _state(self) -> list[Tensor]:
        """Return copies of the tensors that a block changes, beginning with the sum of the losses."""
        return [tensor.detach().clone() for tensor in self._changed()]

    @torch.no_grad()
    def _restore(self, copies: list[Tensor], generators: Any) -> None:
        for tensor, copy in zip(self._changed(), copies, strict=False):  # no copies if their memory is missing
            tensor.copy_(copy)
        restore_generators(generators)

    def _changed(self) -> list[Tensor]:
        tensors = [self._total, self._step, *self.tensors.named().values(), *self.options.tensors()]
        return list({id(tensor): tensor for tensor in tensors}.values())


def blocks_or_none(batches: Batches, loss: Loss, step: Step, tensors: Tensors) -> Blocks | None:
    """Return the blocks of a run, or None if its steps cannot be made in blocks.

    The data must be in the memory of a CUDA device, the gradients compiled, and the optimizer an Adam that a CUDA graph
    can capture. Each step must use one batch, and steps with a loss that is not finite must not be skipped. The only
    possible transform is ``binarize``, because a graph would keep the numbers that the Python code of another transform
    computes.
    """
    data, gradients = batches.source, step.gradients
    if not (isinstance(data, DataInMemory) and data.device.type == "cuda" and isinstance(gradients, CompiledGradients)):
        return None
    if gradients.captured is None or not gradients.captured.options.has_rates:
        return None
    if batches.transform not in (None, binarize):
        return None
    if batches.accumulate > 1 or (step.guard is not None and step.guard.skip):
        return None
    return Blocks(batches, data, loss, gradients, step.optimizer, gradients.captured.options, tensors)


@contextmanager
def _without_waiting(device: torch.device) -> Iterator[None]:
    """Context manager in which torch raises an error if an operation waits for the CUDA device.

    torch does not recognize all such operations. For any other device, the context manager does nothing.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _equal(first: Any, second: Any) -> bool:
    """Return whether the states of generators are equal."""
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
