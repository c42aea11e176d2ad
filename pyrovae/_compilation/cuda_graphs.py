"""CUDA graphs. A graph records the kernels that a function launches, and later launches all of them with one call."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pyrovae._compilation.tracing import unchanged
from pyrovae.isolation import seeded

Result = TypeVar("Result")


class Replay:
    """A function that is replayed as a CUDA graph, with a single launch per call.

    Args:
        run: Function to record.
        examples: Example tensors for the arguments of the function.
        modules: Modules that the function runs. Three warm-up runs precede the recording. The buffers of these modules
            are restored after the warm-up.

    Attributes:
        run: The given function, which launches its kernels one by one. This reference to the function keeps alive the
            tensors that the graph reads by address.
    """

    def __init__(
        self, run: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], modules: Iterable[nn.Module]
    ) -> None:
        self.run, self._given = run, [example.clone() for example in examples]
        device = examples[0].device
        # The current stream copies and restores the buffers, so the warm-up waits for the copies, and the restoration
        # waits for the warm-up.
        with torch.cuda.device(device), seeded(0), unchanged(modules):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # the initialization of libraries on their first calls must not be captured
                    run(*self._given)
            torch.cuda.current_stream().wait_stream(stream)
        self._launch, self._outputs = capture(partial(run, *self._given), device)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the results of the function, in the same tensors at each call."""
        for place, tensor in zip(self._given, tensors, strict=True):
            place.copy_(tensor)
        self._launch()
        return self._outputs


def capture(function: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Record the kernels that a function launches on a CUDA device, without running the kernels.

    Returns:
        A function without arguments that launches all recorded kernels at once, and the result of ``function``. Each
        launch writes new values into the tensors of this result.
    """
    graph = torch.cuda.CUDAGraph()
    # By default torch captures on a stream of the device that was current at the first capture of the process. Also by
    # default, a capture fails if another thread allocates page-locked memory, as the thread of a DataLoader does.
    stream = torch.cuda.Stream(device)
    current = torch.cuda.current_stream(device)  # torch 2.11 does not return to it if a capture fails
    with (
        torch.cuda.device(device),
        torch.cuda.stream(current),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        result = function()
    return graph.replay, result
