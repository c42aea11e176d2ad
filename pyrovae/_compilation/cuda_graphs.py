"""CUDA graphs: what a function launches on a device, written down and launched at once."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from pyrovae._compilation.tracing import unchanged
from pyrovae.isolation import seeded

Result = TypeVar("Result")


def replayed(
    run: Callable[..., Sequence[Tensor]], examples: list[Tensor], modules: Iterable[nn.Module]
) -> Callable[..., Sequence[Tensor]]:
    """Return a function as a CUDA graph, which Python launches once per call.

    Args:
        run: The function.
        examples: Tensors like those that it is given.
        modules: Modules that it runs; their buffers are put back as they were.
    """
    given, device = [example.clone() for example in examples], examples[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with seeded(0), unchanged(modules), torch.cuda.stream(stream):
            for _ in range(3):  # what libraries set up on their first calls must not be captured
                run(*given)
        torch.cuda.current_stream().wait_stream(stream)
    launch, outputs = capture(lambda: run(*given), device)

    def replay(*tensors: Tensor) -> Sequence[Tensor]:
        for place, tensor in zip(given, tensors, strict=True):
            place.copy_(tensor)
        launch()
        return outputs

    replay.reads = run  # type: ignore[attr-defined]  # what the graph reads where it lies must not be freed
    return replay


def capture(function: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Write down what a function launches on a CUDA device, without running it.

    Returns:
        A function that launches all of it at once, and the result of ``function``, whose tensors each launch fills.
    """
    graph = torch.cuda.CUDAGraph()
    # Left to itself torch captures on a stream of the device that was current at the first capture of the process.
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        result = function()
    return graph.replay, result
