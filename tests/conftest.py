"""Shared fixtures: steps run uncompiled unless a test asks for ``compiled`` (a cold compile on Linux takes seconds)."""

import functools
import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # an M5's GPU would multiply with 11 bits; read once, at first use

import gometal_mlx  # noqa: F401  # isort: skip  (before mlx, whose BLAS it chooses)
import mlx.core as mx
import pytest

pytest.register_assert_rewrite("contracts")  # so that its asserts show their values, too
GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def can_compile() -> bool:
    """Whether MLX can compile a function that it has not seen; where it cannot, the whole suite runs uncompiled."""
    try:
        mx.eval(mx.compile(lambda x: mx.exp(x) * random.random() + 1)(mx.ones(3)))
    except RuntimeError:
        return False
    return True


@pytest.fixture(autouse=True)
def _uncompiled(request: pytest.FixtureRequest) -> Iterator[None]:
    if "compiled" in request.fixturenames and can_compile():
        mx.enable_compile()
    else:
        mx.disable_compile()
    mx.random.seed(0)
    yield
    mx.enable_compile()


@pytest.fixture
def compiled() -> None:
    """The test runs with mx.compile switched on, where it works."""


@pytest.fixture
def golden() -> Path:
    """Files written by go-metal; tests/golden/README.md says what each is."""
    return GOLDEN
