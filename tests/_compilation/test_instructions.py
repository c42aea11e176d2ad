"""Compilation trusts the processor's list of vector instructions, unless the C++ compiler refuses them."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor as inductor
from torch import fx
from torch._inductor.exc import CppCompileError, InductorError

from pyrovae._compilation.instructions import compile_graph

GRAPH = fx.symbolic_trace(lambda x: [x + 1])
SCRIPT = """
import torch
from pyrovae._compilation.graphs import Graph

x = torch.arange(1000.0)
(found,) = Graph(lambda: [x.sin() + x], [], [x]).compile()(x)
assert torch.allclose(found, x.sin() + x)
from torch._inductor.cpu_vec_isa import pick_vec_isa

print(pick_vec_isa())
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the options of inductor, whose compiler refuses instructions that it has not tried."""
    options: list[dict[str, Any]] = []

    def compile_fx(_module: Any, _values: Any, given: dict[str, Any]) -> Any:
        options.append(given)
        if "cpp.vec_isa_ok" in given:
            raise InductorError(CppCompileError(["g++"], "unrecognized option"), None)
        return len

    monkeypatch.setattr(inductor, "compile", compile_fx)
    return options


def test_instructions_that_the_compiler_refuses_are_tried_one_by_one(calls: list[dict[str, Any]]) -> None:
    assert compile_graph(GRAPH, [torch.zeros(1)], {"fallback_random": True}) is len
    assert calls == [{"fallback_random": True, "cpp.vec_isa_ok": True}, {"fallback_random": True}]


def test_a_choice_of_the_user_stays(calls: list[dict[str, Any]]) -> None:
    with inductor.config.patch({"cpp.vec_isa_ok": False}):
        compile_graph(GRAPH, [torch.zeros(1)], {})
    assert calls == [{}]


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(inductor, "compile", fail)
    with pytest.raises(RuntimeError, match="no compiler"):
        compile_graph(GRAPH, [torch.zeros(1)], {})


@pytest.mark.slow
def test_an_old_compiler_still_compiles(tmp_path: Path) -> None:
    """A compiler that knows no AVX-512 gets a graph with other instructions, which gives the same numbers."""
    compiler = tmp_path / "old"
    compiler.write_text('#!/bin/bash\ncase "$*" in *-mavx512*|*-mamx*) exit 1;; esac\nexec g++ "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert "avx512" not in told.stdout
