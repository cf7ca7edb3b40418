"""Cross-entropy of probabilities."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from ...layers import Layer
from .binary_cross_entropy import CLAMP
from .cross_entropy import CrossEntropy


class CategoricalCrossEntropy(CrossEntropy):
    """``mean_n(-sum_c y_nc log p_nc)`` with p clamped to [1e-7, 1 - 1e-7].

    The outputs are probabilities of the classes (the model ends in Softmax); they are not normalised again.

    Shapes and labels: as CrossEntropy.
    Source: go-metal bridge_graph.m.
    """

    code: ClassVar[int] = 4
    uses_logits: ClassVar[bool] = False
    answer: ClassVar[type[Layer] | None] = None
    needs_last: ClassVar[tuple[str, ...]] = ("Softmax",)
    instead: ClassVar[str] = "CrossEntropy takes logits"

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        return self._expect(mx.log(mx.clip(outputs.astype(mx.float32), CLAMP, 1 - CLAMP)), y)
