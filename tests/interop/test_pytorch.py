"""PyTorch as a judge of layers, losses and optimizers where both mean the same (``make test-interop`` installs it)."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx import Model, ModelSpec
from gometal_mlx.layers import (
    ELU,
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
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
from gometal_mlx.layers.base import LAYERS
from gometal_mlx.optimizers import SGD, AdaDelta, AdaGrad, Adam, Optimizer, RMSProp
from gometal_mlx.training.losses import (
    LOSSES,
    BCEWithLogits,
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCrossEntropy,
)

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch", reason="make test-interop installs PyTorch")
F = torch.nn.functional

# PyTorch runs in float64 on the same float32 numbers, so the difference is MLX's own rounding: 6e-8 an operation, sums
# of up to 75 products; gradients go through two such sums
VALUE_TOLERANCE = 3e-6
GRADIENT_TOLERANCE = 1e-5

Tensor = Any
Weights = dict[str, Tensor]


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def double(array: Any) -> Tensor:
    return torch.tensor(np.array(array), dtype=torch.float64, requires_grad=True)


def assert_close(found: mx.array, expected: Tensor, tolerance: float) -> None:
    wanted = expected.detach().numpy()
    assert tuple(found.shape) == wanted.shape
    np.testing.assert_allclose(np.array(found), wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1e-3))


# ----------------------------------------------------------------------------------------------------------- layers

Forward = Callable[[Tensor, Weights], Tensor]


def norm(training: bool, **settings: Any) -> Forward:
    def forward(x: Tensor, w: Weights) -> Tensor:
        mean, var = w["running_mean"].detach().clone(), w["running_var"].detach().clone()
        return F.batch_norm(x, mean, var, w.get("weight"), w.get("bias"), training, **settings)

    return forward


IMAGE = (3, 2, 7, 6)
# (layer, input shape, training, PyTorch's word for it); weights come in go-metal's layout
LAYER_CASES: list[tuple[Layer, tuple[int, ...], bool, Forward]] = [
    (Dense(name="l", output_size=4), (5, 3), True, lambda x, w: F.linear(x, w["weight"].T, w["bias"])),
    (Dense(name="l", output_size=4, use_bias=False), (5, 3), True, lambda x, w: F.linear(x, w["weight"].T)),
    (
        Dense(name="l", output_size=4), (2, 2, 3, 3), True,
        lambda x, w: F.linear(torch.flatten(x, 1), w["weight"].T, w["bias"]),
    ),
    *(
        (
            Conv2D(name="l", output_channels=4, kernel_size=k, stride=s, padding=p), IMAGE, True,
            lambda x, w, s=s, p=p: F.conv2d(x, w["weight"], w["bias"], stride=s, padding=p),
        )
        for k, s, p in [(3, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 1, 0), (2, 3, 0)]
    ),
    (
        Conv2D(name="l", output_channels=4, kernel_size=3, use_bias=False), IMAGE, True,
        lambda x, w: F.conv2d(x, w["weight"]),
    ),
    *(
        (
            BatchNorm(name="l", eps=eps, momentum=0.3, affine=affine), shape, training,
            norm(training, momentum=0.3, eps=eps),
        )
        for eps, affine in [(1e-5, True), (1e-2, True), (1e-5, False)]
        for shape in [(8, 3), IMAGE]
        for training in (True, False)
    ),
    *(
        (
            MaxPool2D(name="l", pool_size=k, stride=s, padding=p), IMAGE, True,
            lambda x, w, k=k, s=s, p=p: F.max_pool2d(x, k, s or k, p),
        )
        for k, s, p in [(2, 0, 0), (3, 2, 1), (3, 1, 0), (2, 3, 1)]
    ),
    (Dropout(name="l", rate=0.4), (5, 3), False, lambda x, w: F.dropout(x, 0.4, training=False)),
    (Softmax(name="l"), (5, 3), True, lambda x, w: F.softmax(x, -1)),
    (Softmax(name="l", axis=1), IMAGE, True, lambda x, w: F.softmax(x, 1)),
    (ReLU(name="l"), IMAGE, True, lambda x, w: F.relu(x)),
    (LeakyReLU(name="l", negative_slope=0.2), IMAGE, True, lambda x, w: F.leaky_relu(x, 0.2)),
    (ELU(name="l", alpha=0.7), IMAGE, True, lambda x, w: F.elu(x, 0.7)),
    (Sigmoid(name="l"), IMAGE, True, lambda x, w: torch.sigmoid(x)),
    (Tanh(name="l"), IMAGE, True, lambda x, w: torch.tanh(x)),
    (Swish(name="l"), IMAGE, True, lambda x, w: F.silu(x)),
    (Flatten(name="l"), IMAGE, True, lambda x, w: torch.flatten(x, 1)),
    *(
        (
            AvgPool2D(name="l", pool_size=k, stride=s, padding=p, count_include_pad=include), IMAGE, True,
            lambda x, w, k=k, s=s, p=p, include=include: F.avg_pool2d(x, k, s or k, p, count_include_pad=include),
        )
        for k, s, p, include in [(2, 0, 0, True), (3, 2, 1, True), (3, 2, 1, False), (2, 1, 1, False)]
    ),
    (GlobalAvgPool2D(name="l"), IMAGE, True, lambda x, w: F.adaptive_avg_pool2d(x, 1)),
    (LogSoftmax(name="l", axis=1), IMAGE, True, lambda x, w: F.log_softmax(x, 1)),
    (ReLU6(name="l"), IMAGE, True, lambda x, w: F.relu6(x)),
    (Affine(name="l"), (5, 3), True, lambda x, w: x * w["weight"] + w["bias"]),
    (
        Affine(name="l"), IMAGE, True,
        lambda x, w: x * w["weight"].reshape(-1, 1, 1) + w["bias"].reshape(-1, 1, 1),
    ),
]  # fmt: skip


def described(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, Layer) else None


def test_every_layer_is_judged() -> None:
    assert {type(layer) for layer, *_ in LAYER_CASES} == set(LAYERS.values())


@pytest.mark.parametrize(("layer", "shape", "training", "forward"), LAYER_CASES, ids=described)
def test_layer(layer: Layer, shape: tuple[int, ...], training: bool, forward: Forward) -> None:
    """Value, gradients of input and weights, for a random mask over the outputs."""
    model = Model(ModelSpec.from_layers([layer], shape)).train(training)
    weights = model.get("l", {})
    for i, name in enumerate(sorted(weights)):
        value = random(weights[name].shape, i + 1)
        weights[name] = mx.array(np.abs(value) + 0.5 if name == "running_var" else value)
    theirs: Weights = {n: double(a) for n, a in weights.items()}
    learned = [n for n in theirs if not n.startswith("running")]
    x = random(shape)
    x_theirs = double(x)
    expected = forward(x_theirs, theirs)
    mask = random(tuple(expected.shape), 9)
    (expected * torch.tensor(mask, dtype=torch.float64)).sum().backward()

    def loss(x: mx.array, given: dict[str, mx.array]) -> mx.array:
        weights.update(given)
        return (model(x) * mx.array(mask)).sum()

    given = {n: weights[n] for n in learned}
    assert_close(model(mx.array(x)), expected, VALUE_TOLERANCE)
    x_gradient, gradients = mx.grad(loss, argnums=(0, 1))(mx.array(x), given)
    assert_close(x_gradient, x_theirs.grad, GRADIENT_TOLERANCE)
    for name in learned:
        assert_close(gradients[name], theirs[name].grad, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 2, 5)])
def test_batch_norm_moves_its_statistics_alike(shape: tuple[int, ...], momentum: float) -> None:
    ours = Model(ModelSpec.from_layers([BatchNorm(name="l", momentum=momentum)], shape)).train()
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    theirs = kind(shape[1], momentum=momentum, dtype=torch.float64).train()
    for step in range(3):
        x = 2 * random(shape, step) + 1
        assert_close(ours(mx.array(x)), theirs(double(x)), VALUE_TOLERANCE)
    assert_close(ours["l"]["running_mean"], theirs.running_mean, VALUE_TOLERANCE)
    assert_close(ours["l"]["running_var"], theirs.running_var, VALUE_TOLERANCE)
    x = random(shape, 5)
    assert_close(ours.eval()(mx.array(x)), theirs.eval()(double(x)), VALUE_TOLERANCE)


def test_dropout_keeps_and_scales_like_pytorch() -> None:
    x = np.ones((200, 200), np.float32)
    ours = np.array(Model(ModelSpec.from_layers([Dropout(name="l", rate=0.3)], x.shape)).train()(mx.array(x)))
    theirs = F.dropout(torch.tensor(x), 0.3, training=True).numpy()
    np.testing.assert_allclose(np.unique(ours), np.unique(theirs), rtol=1e-6)  # 0 and 1 / 0.7 in float32
    assert abs((ours > 0).mean() - 0.7) < 0.015  # 40,000 draws: a standard deviation is 0.0023


# ----------------------------------------------------------------------------------------------------------- losses

ROWS, CLASSES = 6, 4
NUMBERS = np.array([0, 3, 1, 2, 2, 0])
SHARES = np.random.default_rng(3).dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
UNIT = np.random.default_rng(4).uniform(0.01, 0.99, (ROWS, CLASSES)).astype(np.float32)


def whole(y: Any) -> Tensor:
    return torch.tensor(np.array(y), dtype=torch.int64)


def real(y: Any) -> Tensor:
    return torch.tensor(np.array(y), dtype=torch.float64)


LOSS_CASES: list[tuple[type[Loss], np.ndarray, Any, Callable[[Tensor, Any], Tensor]]] = [
    *(
        (kind, 4 * random((ROWS, CLASSES)), NUMBERS, lambda x, y: F.cross_entropy(x, whole(y)))
        for kind in (CrossEntropy, SparseCrossEntropy)
    ),
    *(
        (kind, 4 * random((ROWS, CLASSES)), SHARES, lambda x, y: F.cross_entropy(x, real(y)))
        for kind in (CrossEntropy, SparseCrossEntropy)
    ),
    (CategoricalCrossEntropy, SHARES, NUMBERS, lambda x, y: F.nll_loss(torch.log(x), whole(y))),
    (BinaryCrossEntropy, UNIT, UNIT[::-1].copy(), lambda x, y: F.binary_cross_entropy(x, real(y))),
    (BCEWithLogits, 4 * random((ROWS, CLASSES)), UNIT, lambda x, y: F.binary_cross_entropy_with_logits(x, real(y))),
    (BCEWithLogits, np.zeros((ROWS, CLASSES), np.float32), UNIT,
     lambda x, y: F.binary_cross_entropy_with_logits(x, real(y))),
    (MeanSquaredError, 2 * random((ROWS, CLASSES)), random((ROWS, CLASSES), 1), lambda x, y: F.mse_loss(x, real(y))),
    (MeanAbsoluteError, 2 * random((ROWS, CLASSES)), random((ROWS, CLASSES), 1), lambda x, y: F.l1_loss(x, real(y))),
    (Huber, 2 * random((ROWS, CLASSES)), random((ROWS, CLASSES), 1), lambda x, y: F.huber_loss(x, real(y))),
]  # fmt: skip


def test_every_loss_is_judged() -> None:
    assert {kind for kind, *_ in LOSS_CASES} == set(LOSSES.values())


@pytest.mark.parametrize(("kind", "x", "y", "judge"), LOSS_CASES, ids=lambda v: getattr(v, "__name__", None))
def test_loss(kind: type[Loss], x: np.ndarray, y: Any, judge: Callable[[Tensor, Any], Tensor]) -> None:
    loss = kind(x.shape)
    labels = mx.array(loss.labels(y, len(x)))
    value, gradient = mx.value_and_grad(lambda x: mx.mean(loss.per_row(x, labels)))(mx.array(x))
    theirs = double(x)
    expected = judge(theirs, y)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=VALUE_TOLERANCE)
    assert_close(gradient, theirs.grad, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("labels", [NUMBERS, SHARES], ids=["numbers", "shares"])
def test_label_smoothing(labels: np.ndarray) -> None:
    x, loss = random((ROWS, CLASSES)), CrossEntropy((ROWS, CLASSES), label_smoothing=0.2)
    target = whole(labels) if labels.ndim == 1 else real(labels)
    expected = F.cross_entropy(real(x), target, label_smoothing=0.2).item()
    found = loss.mean(mx.array(x), mx.array(loss.labels(labels, ROWS))).item()
    assert found == pytest.approx(expected, rel=VALUE_TOLERANCE)


def test_class_weights() -> None:
    x, loss, weights = random((ROWS, CLASSES)), CrossEntropy((ROWS, CLASSES)), [1.0, 2.0, 0.5, 4.0]
    expected = F.cross_entropy(real(x), whole(NUMBERS), weight=real(weights)).item()
    found = loss.mean(mx.array(x), mx.array(loss.labels(NUMBERS, ROWS)), weights).item()
    assert found == pytest.approx(expected, rel=VALUE_TOLERANCE)


# ------------------------------------------------------------------------------------------------------- optimizers

# (ours, PyTorch's) where the formulas coincide; both without weight decay unless they treat it alike
OPTIMIZER_CASES: list[tuple[Callable[[], Optimizer], Callable[[Any], Any]]] = [
    (lambda: SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    (lambda: SGD(0.05, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
    (
        lambda: SGD(0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    ),
    (
        lambda: SGD(0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    ),
    (lambda: Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    (
        lambda: Adam(0.05, beta1=0.8, beta2=0.95, epsilon=1e-4),
        lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.95), 1e-4),
    ),
    (lambda: AdaGrad(0.05, weight_decay=0.1), lambda p: torch.optim.Adagrad(p, 0.05, weight_decay=0.1)),
    (
        lambda: AdaDelta(rho=0.9, epsilon=1e-4, weight_decay=0.1),
        lambda p: torch.optim.Adadelta(p, 1.0, 0.9, 1e-4, weight_decay=0.1),
    ),
]


def descend(ours: Optimizer, theirs: Callable[[Any], Any], steps: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Both from the same weights with the same gradients."""
    start = random((4, 3))
    weights = {"w": mx.array(start)}
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = theirs([parameter])
    for step in range(steps):
        g = random((4, 3), 100 + step)
        weights = ours.apply_gradients({"w": mx.array(g)}, weights)
        parameter.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    return np.array(weights["w"]), parameter.detach().numpy()


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZER_CASES)
def test_optimizer(ours: Callable[[], Optimizer], theirs: Callable[[Any], Any]) -> None:
    found, expected = descend(ours(), theirs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # 25 steps in float32, and 1 - 0.999^t in it


def test_adam_with_decay_is_adamw() -> None:
    """PyTorch decays before the step, go-metal adds lr * wd * w of the same w: the same number."""
    found, expected = descend(Adam(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # as above


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_where_epsilon_does_not_matter(momentum: float, centered: bool) -> None:
    """PyTorch has epsilon outside the root, go-metal inside: they coincide as it vanishes."""
    found, expected = descend(
        RMSProp(0.01, epsilon=1e-14, momentum=momentum, centered=centered),
        lambda p: torch.optim.RMSprop(p, 0.01, eps=1e-14, momentum=momentum, centered=centered),
    )
    scale = np.abs(expected).max()  # the first steps are 10 times the rate, and momentum adds them up
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, scale))
