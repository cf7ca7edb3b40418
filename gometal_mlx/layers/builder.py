"""ModelBuilder and LayerFactory: go-metal's two ways to describe layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Self

from .._types import is_int
from ..errors import SpecError
from .base import Layer
from .registry import (
    ELU,
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    LogSoftmax,
    MaxPool2D,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
    Swish,
    Tanh,
)
from .spec import LayerSpec, ModelSpec, check_input_shape


class ModelBuilder:
    """Describes a model layer by layer; every ``add_*`` returns the builder, ``compile`` the ModelSpec.

    Args:
        input_shape: ``(batch, features)`` or ``(batch, channels, height, width)``; the model takes any batch size.

    A layer without a name gets ``<type>_<n>``.

    >>> spec = ModelBuilder((32, 784)).add_dense(128, True, "hidden1").add_relu("relu1").add_dense(10).compile()
    >>> spec.total_parameters
    101770

    Raises: SpecError for values out of range, at the call; what depends on shapes is raised by ``compile``.
    Source: go-metal layers/layer.go, ModelBuilder.
    """

    def __init__(self, input_shape: Iterable[int]) -> None:
        self._input_shape = check_input_shape(input_shape)
        self._layers: list[Layer] = []
        self._compiled: ModelSpec | None = None

    def _add(self, layer: type[Layer], name: str | None, **settings: Any) -> Self:
        if name is None:
            stem = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", layer.__name__).lower()
            taken = {x.name for x in self._layers}
            name = next(n for i in range(1, len(taken) + 2) if (n := f"{stem}_{i}") not in taken)
        self._layers.append(layer(name=name, **settings))
        self._compiled = None
        return self

    def add_dense(self, output_size: int, use_bias: bool = True, name: str | None = None) -> Self:
        """Append a Dense layer (flattens its input)."""
        return self._add(Dense, name, output_size=output_size, use_bias=use_bias)

    def add_conv2d(
        self, output_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, use_bias: bool = True,
        name: str | None = None,
    ) -> Self:  # fmt: skip
        """Append a Conv2D layer."""
        return self._add(
            Conv2D, name, output_channels=output_channels, kernel_size=kernel_size, stride=stride, padding=padding,
            use_bias=use_bias,
        )  # fmt: skip

    def add_batch_norm(
        self, num_features: int | None = None, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True,
        name: str | None = None,
    ) -> Self:  # fmt: skip
        """Append a BatchNorm layer; ``num_features`` None takes the input's channels."""
        if num_features is not None and num_features == 0:
            raise SpecError(f"BatchNorm {name!r}: num_features must be at least 1 (or None: from the input), got 0")
        return self._add(
            BatchNorm,
            name,
            num_features=0 if num_features is None else num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
        )

    def add_dropout(self, rate: float = 0.5, name: str | None = None) -> Self:
        """Append a Dropout layer."""
        return self._add(Dropout, name, rate=rate)

    def add_max_pool2d(
        self, pool_size: int = 2, stride: int | None = None, padding: int = 0, name: str | None = None
    ) -> Self:
        """Append a MaxPool2D layer; ``stride`` None means ``pool_size``."""
        if stride is not None and stride == 0:
            raise SpecError(f"MaxPool2D {name!r}: stride must be at least 1 (or None: pool_size), got 0")
        return self._add(MaxPool2D, name, pool_size=pool_size, stride=0 if stride is None else stride, padding=padding)

    def add_softmax(self, axis: int = -1, name: str | None = None) -> Self:
        """Append a Softmax layer."""
        return self._add(Softmax, name, axis=axis)

    def add_leaky_relu(self, negative_slope: float = 0.01, name: str | None = None) -> Self:
        """Append a LeakyReLU layer."""
        return self._add(LeakyReLU, name, negative_slope=negative_slope)

    def add_elu(self, alpha: float = 1.0, name: str | None = None) -> Self:
        """Append an ELU layer."""
        return self._add(ELU, name, alpha=alpha)

    def add_relu(self, name: str | None = None) -> Self:
        """Append a ReLU layer."""
        return self._add(ReLU, name)

    def add_sigmoid(self, name: str | None = None) -> Self:
        """Append a Sigmoid layer."""
        return self._add(Sigmoid, name)

    def add_tanh(self, name: str | None = None) -> Self:
        """Append a Tanh layer."""
        return self._add(Tanh, name)

    def add_swish(self, name: str | None = None) -> Self:
        """Append a Swish layer."""
        return self._add(Swish, name)

    def add_flatten(self, name: str | None = None) -> Self:
        """Append a Flatten layer (a Dense layer does it by itself)."""
        return self._add(Flatten, name)

    def add_avg_pool2d(
        self, pool_size: int = 2, stride: int | None = None, padding: int = 0, count_include_pad: bool = True,
        name: str | None = None,
    ) -> Self:  # fmt: skip
        """Append an AvgPool2D layer; ``stride`` None means ``pool_size``."""
        if stride is not None and stride == 0:
            raise SpecError(f"AvgPool2D {name!r}: stride must be at least 1 (or None: pool_size), got 0")
        return self._add(
            AvgPool2D, name, pool_size=pool_size, stride=0 if stride is None else stride, padding=padding,
            count_include_pad=count_include_pad,
        )  # fmt: skip

    def add_global_avg_pool2d(self, name: str | None = None) -> Self:
        """Append a GlobalAvgPool2D layer."""
        return self._add(GlobalAvgPool2D, name)

    def add_log_softmax(self, axis: int = -1, name: str | None = None) -> Self:
        """Append a LogSoftmax layer."""
        return self._add(LogSoftmax, name, axis=axis)

    def add_relu6(self, name: str | None = None) -> Self:
        """Append a ReLU6 layer."""
        return self._add(ReLU6, name)

    def add_affine(self, name: str | None = None) -> Self:
        """Append an Affine layer."""
        return self._add(Affine, name)

    def add_layer(self, layer_spec: LayerSpec | Layer) -> Self:
        """Append any layer, as a LayerSpec (from LayerFactory or a file) or as a typed layer."""
        if not isinstance(layer_spec, LayerSpec | Layer):
            raise SpecError(f"add_layer: a LayerSpec or Layer is needed, got {type(layer_spec).__name__}")
        if isinstance(layer_spec, LayerSpec):
            self._check_derived(layer_spec, layer := layer_spec.layer())
        else:
            layer = layer_spec
        self._layers.append(layer)
        self._compiled = None
        return self

    def _check_derived(self, spec: LayerSpec, layer: Layer) -> None:
        """What a factory says of a layer's input (``input_size``, ``input_channels``) must fit what precedes it."""
        stated = layer.stated(spec.parameters)
        if not stated:
            return
        shape = (
            ModelSpec.from_layers(self._layers, self._input_shape).output_shape if self._layers else self._input_shape
        )
        layer.output_shape(shape)  # refuses a rank for which nothing can be derived
        for key, value in layer.derived(shape).items():
            if stated.get(key, value) != value:
                raise layer.error(f"{key} is {stated[key]}, but its input {shape} gives {value}")

    def compile(self) -> ModelSpec:
        """Check the whole stack and work out every shape; nothing is added to it.

        Raises: SpecError, ShapeError: naming the layer and its position.
        """
        self._compiled = ModelSpec.from_layers(self._layers, self._input_shape)
        return self._compiled

    def get_compiled_model(self) -> ModelSpec:
        """The result of the last ``compile``; SpecError if a layer was added since."""
        if self._compiled is None:
            raise SpecError("model: not compiled since the last layer was added; call compile() first")
        return self._compiled


class LayerFactory:
    """Makes single LayerSpecs with go-metal's argument order, for ``ModelBuilder.add_layer``.

    Source: go-metal layers/layer.go, NewFactory.
    """

    @staticmethod
    def _spec(layer: Layer, **derived: int) -> LayerSpec:
        for key, value in derived.items():
            if not is_int(value) or value < 1:
                raise layer.error(f"{key} must be an int of at least 1, got {value!r}")
        return LayerSpec(layer.code, layer.name, layer.parameters() | {k: int(v) for k, v in derived.items()})

    def create_dense_spec(
        self, input_size: int, output_size: int, use_bias: bool = True, name: str = "dense"
    ) -> LayerSpec:
        """A Dense layer of known input size."""
        return self._spec(Dense(name=name, output_size=output_size, use_bias=use_bias), input_size=input_size)

    def create_conv2d_spec(
        self, input_channels: int, output_channels: int, kernel_size: int, stride: int = 1, padding: int = 0,
        use_bias: bool = True, name: str = "conv2d",
    ) -> LayerSpec:  # fmt: skip
        """A Conv2D layer of known input channels."""
        layer = Conv2D(
            name=name, output_channels=output_channels, kernel_size=kernel_size, stride=stride, padding=padding,
            use_bias=use_bias,
        )  # fmt: skip
        return self._spec(layer, input_channels=input_channels)

    def create_batch_norm_spec(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, name: str = "batch_norm"
    ) -> LayerSpec:
        """A BatchNorm layer; ``num_features`` 0 means: take it from the input."""
        return self._spec(BatchNorm(name=name, num_features=num_features, eps=eps, momentum=momentum, affine=affine))

    def create_max_pool2d_spec(
        self, pool_size: int = 2, stride: int = 0, padding: int = 0, name: str = "max_pool2d"
    ) -> LayerSpec:
        """A MaxPool2D layer; ``stride`` 0 means ``pool_size``."""
        return self._spec(MaxPool2D(name=name, pool_size=pool_size, stride=stride, padding=padding))

    def create_relu_spec(self, name: str = "relu") -> LayerSpec:
        """A ReLU layer."""
        return self._spec(ReLU(name=name))

    def create_softmax_spec(self, axis: int = -1, name: str = "softmax") -> LayerSpec:
        """A Softmax layer."""
        return self._spec(Softmax(name=name, axis=axis))

    def create_leaky_relu_spec(self, negative_slope: float = 0.01, name: str = "leaky_relu") -> LayerSpec:
        """A LeakyReLU layer."""
        return self._spec(LeakyReLU(name=name, negative_slope=negative_slope))

    def create_elu_spec(self, alpha: float = 1.0, name: str = "elu") -> LayerSpec:
        """An ELU layer."""
        return self._spec(ELU(name=name, alpha=alpha))

    def create_sigmoid_spec(self, name: str = "sigmoid") -> LayerSpec:
        """A Sigmoid layer."""
        return self._spec(Sigmoid(name=name))

    def create_tanh_spec(self, name: str = "tanh") -> LayerSpec:
        """A Tanh layer."""
        return self._spec(Tanh(name=name))

    def create_swish_spec(self, name: str = "swish") -> LayerSpec:
        """A Swish layer."""
        return self._spec(Swish(name=name))

    def create_dropout_spec(self, rate: float = 0.5, name: str = "dropout") -> LayerSpec:
        """A Dropout layer."""
        return self._spec(Dropout(name=name, rate=rate))

    def create_flatten_spec(self, name: str = "flatten") -> LayerSpec:
        """A Flatten layer."""
        return self._spec(Flatten(name=name))

    def create_avg_pool2d_spec(
        self,
        pool_size: int = 2,
        stride: int = 0,
        padding: int = 0,
        count_include_pad: bool = True,
        name: str = "avg_pool2d",
    ) -> LayerSpec:
        """An AvgPool2D layer; ``stride`` 0 means ``pool_size``."""
        layer = AvgPool2D(
            name=name, pool_size=pool_size, stride=stride, padding=padding, count_include_pad=count_include_pad
        )
        return self._spec(layer)

    def create_global_avg_pool2d_spec(self, name: str = "global_avg_pool2d") -> LayerSpec:
        """A GlobalAvgPool2D layer."""
        return self._spec(GlobalAvgPool2D(name=name))

    def create_log_softmax_spec(self, axis: int = -1, name: str = "log_softmax") -> LayerSpec:
        """A LogSoftmax layer."""
        return self._spec(LogSoftmax(name=name, axis=axis))

    def create_relu6_spec(self, name: str = "relu6") -> LayerSpec:
        """A ReLU6 layer."""
        return self._spec(ReLU6(name=name))

    def create_affine_spec(self, name: str = "affine") -> LayerSpec:
        """An Affine layer."""
        return self._spec(Affine(name=name))
