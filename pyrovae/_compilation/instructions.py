"""Inductor's choice of the processor's vector instructions, without test programs.

Inductor compiles, links and loads a test program for each set of vector instructions that the processor has. The test
programs take a third of a first compilation's time. This module lets inductor assume that every set works. If the C++
compiler then rejects inductor's code, for example because the compiler is older than the processor, inductor compiles
the graph again with the test programs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx


def compile_graph(module: fx.GraphModule, values: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph with inductor, and return the compiled function.

    Args:
        module: The graph.
        values: Values of the graph's inputs. The function takes tensors of the same shapes and dtypes.
        options: Options of inductor, by name.
    """
    import torch._inductor as inductor  # the import takes a second, and only compilation needs it

    if inductor.config.cpp.vec_isa_ok is not None:  # the user has decided, by TORCHINDUCTOR_VEC_ISA_OK
        return inductor.compile(module, list(values), options)
    try:
        return inductor.compile(module, list(values), {**options, "cpp.vec_isa_ok": True})
    except Exception as error:
        if not _is_of_the_compiler(error):
            raise
    _forget_instructions()
    return inductor.compile(module, list(values), options)


def _forget_instructions() -> None:
    """Let inductor choose the vector instructions anew."""
    from torch._inductor import cpu_vec_isa

    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    for each in cpu_vec_isa.supported_vec_isa_list:
        if clear := getattr(type(each).__bool__, "cache_clear", None):
            clear()


def _is_of_the_compiler(error: Exception) -> bool:
    """Return whether an error of inductor says that the C++ compiler rejected inductor's code."""
    from torch._inductor.exc import CppCompileError

    return isinstance(getattr(error, "inner_exception", error), CppCompileError)
