"""The Triton kernels on a CPU."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _interpreter_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bf16 numbers as integers, and its dot product multiplies those. Widen them first."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, float32) if x.dtype.scalar == bfloat16 else x for x in (a, b))
        return multiply(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
