"""Where MLX will compute: the one question by which layers choose between formulations."""

import mlx.core as mx


def on_cpu() -> bool:
    """Whether what is traced now will run on the CPU."""
    return bool(mx.default_device().type == mx.cpu)
