"""Shared fixtures: steps run uncompiled unless a test asks for ``compiled`` (a cold compile on Linux takes seconds)."""

from collections.abc import Iterator
from pathlib import Path

import gometal_mlx  # noqa: F401  # isort: skip  (before mlx, whose BLAS it chooses)
import mlx.core as mx
import pytest

pytest.register_assert_rewrite("contracts")  # so that its asserts show their values, too
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _uncompiled(request: pytest.FixtureRequest) -> Iterator[None]:
    if "compiled" in request.fixturenames:
        mx.enable_compile()
    else:
        mx.disable_compile()
    mx.random.seed(0)
    yield
    mx.enable_compile()


@pytest.fixture
def compiled() -> None:
    """The test runs with mx.compile switched on."""


@pytest.fixture
def golden() -> Path:
    """Files written by go-metal; tests/golden/README.md says what each is."""
    return GOLDEN
