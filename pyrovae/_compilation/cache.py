"""Inductor's cache of compiled graphs, which later runs of the same program read instead of compiling again.

Inductor uses its cache on disk only for graphs that are traced with a shape environment, as by ``torch.compile``. The
graphs of this package are traced by ``make_fx`` with fixed shapes, so they get an empty environment here. A graph that
is found in the cache is ready in about a third of the time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.versions import __version__


@contextmanager
def caching(values: Sequence[Tensor]) -> Iterator[None]:
    """Let inductor read graphs from its cache and add graphs to it, in the body of a ``with`` statement.

    Graphs on a CUDA device are not cached, and nor are graphs of torch before 2.15. The cache of earlier versions
    ignores the number of threads, for which inductor writes its code.

    Args:
        values: Values of the graph's inputs.
    """
    if torch.__version__ < "2.15" or any(value.is_cuda for value in values):
        yield
        return
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # As without an environment, operations whose results have shapes that depend on values raise an error.
    shapes = ShapeEnv(assume_static_by_default=True, allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    settings: Any = torch.compiler.config
    # The code that inductor writes for the operations of this package can change with the version.
    tag = f"{settings.cache_key_tag} pyrovae {__version__}"
    with settings.patch(cache_key_tag=tag), tracing(TracingContext(mode)):
        yield
