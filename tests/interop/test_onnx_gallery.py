"""Models that PyTorch, scikit-learn and this package export, read back from their ONNX files (``make test-interop``).

``gm.load`` compares with onnxruntime by itself; here the original framework says what is right.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from contracts import randomise

import gometal_mlx as gm
from gometal_mlx import Model, ModelBuilder
from gometal_mlx.checkpoints import extract_weights
from gometal_mlx.checkpoints.onnx import load
from gometal_mlx.errors import CheckpointError, UnsupportedError

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]  # torch's exporters warn of themselves

CLOSE = 1e-5  # of the largest output: float32 sums in another order, over several layers


def imported(path: Path, x: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The imported model's output, and its layers."""
    checkpoint = gm.load(path)
    layers = [s.type_name for s in checkpoint.model_spec.layers]
    return np.asarray(Model.from_checkpoint(checkpoint)(mx.array(x.astype(np.float32)))), layers


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= CLOSE * np.abs(theirs).max()


# ------------------------------------------------------------------------------------------------------------- PyTorch


def lively(net: Any, seed: int = 0) -> Any:
    """In evaluation, with statistics, scales and shifts that are not 0 and 1."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def conv_block(i: int, o: int) -> list[Any]:
    return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]


class Normalised(nn.Module):
    """Pixels from 0 to 255 in, as a model for deployment takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1))
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x: Any) -> Any:
        return self.net((x - self.mean) / self.std)


class Viewed(nn.Module):
    """Flattens as scripts do, with the batch size read from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.conv(x))
        return torch.log_softmax(self.fc(x.view(x.size(0), -1)), dim=1)


class MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3), keepdim=True).flatten(1))


def vgg() -> Any:
    blocks: list[Any] = []
    for i, o in ((3, 8), (8, 16)):
        blocks += [*conv_block(i, o), *conv_block(o, o), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5)]
    return nn.Sequential(*blocks, *head)


def lenet() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


def mlp(*activation: Any) -> Callable[[], Any]:
    return lambda: nn.Sequential(nn.Linear(7, 9), *activation, nn.Linear(9, 4))


def cnn(*body: Any) -> Callable[[], Any]:
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *body)


@dataclass(frozen=True)
class Net:
    """A PyTorch model and how it is exported."""

    make: Callable[[], Any]
    shape: tuple[int, ...]
    layers: str
    opset: int = 17
    dynamic: bool = True
    double: bool = False
    dynamo_layers: str = ""  # where that exporter makes others of it


ROW, IMAGE = (7,), (3, 8, 8)
NETS = {
    "MLP ReLU": Net(mlp(nn.ReLU()), ROW, "Dense ReLU Dense"),
    "MLP ReLU, opset 13": Net(mlp(nn.ReLU()), ROW, "Dense ReLU Dense", 13),
    "MLP ReLU, opset 20": Net(mlp(nn.ReLU()), ROW, "Dense ReLU Dense", 20),
    "MLP of one batch size": Net(mlp(nn.ReLU()), ROW, "Dense ReLU Dense", dynamic=False),
    "MLP double": Net(mlp(nn.Tanh()), ROW, "Dense Tanh Dense", double=True),
    "MLP LeakyReLU": Net(mlp(nn.LeakyReLU(0.2)), ROW, "Dense LeakyReLU Dense"),
    "MLP ELU": Net(mlp(nn.ELU(0.7)), ROW, "Dense ELU Dense"),
    "MLP Sigmoid": Net(mlp(nn.Sigmoid()), ROW, "Dense Sigmoid Dense"),
    "MLP Tanh": Net(mlp(nn.Tanh()), ROW, "Dense Tanh Dense"),
    "MLP SiLU": Net(mlp(nn.SiLU()), ROW, "Dense Swish Dense"),
    "MLP ReLU6": Net(mlp(nn.ReLU6()), ROW, "Dense ReLU6 Dense"),
    "MLP Softmax": Net(mlp(nn.Softmax(-1)), ROW, "Dense Softmax Dense"),
    "MLP LogSoftmax": Net(mlp(nn.LogSoftmax(1)), ROW, "Dense LogSoftmax Dense"),
    "MLP BatchNorm1d": Net(mlp(nn.BatchNorm1d(9), nn.ReLU()), ROW, "Dense BatchNorm ReLU Dense",
        dynamo_layers="Dense ReLU Dense"),
    "MLP Dropout": Net(mlp(nn.Dropout(0.3), nn.ReLU()), ROW, "Dense ReLU Dense"),
    "MLP without bias": Net(lambda: nn.Sequential(nn.Linear(7, 4, bias=False)), ROW, "Dense"),
    "CNN stride and padding": Net(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5)), IMAGE, "Conv2D ReLU Dense"),
    "CNN fixed batch": Net(cnn(nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), IMAGE, "Conv2D ReLU Dense", dynamic=False),
    "CNN without an end": Net(cnn(nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGE, "Conv2D ReLU Conv2D"),
    "CNN max pooling": Net(cnn(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(36, 5)), IMAGE, "Conv2D MaxPool2D Dense"),
    "CNN mean pooling": Net(cnn(nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(36, 5)), IMAGE,
        "Conv2D AvgPool2D Dense"),
    "CNN mean of the image only": Net(cnn(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(),
        nn.Linear(36, 5)), IMAGE, "Conv2D AvgPool2D Dense"),
    "CNN global pooling": Net(cnn(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), IMAGE,
        "Conv2D GlobalAvgPool2D Dense"),
    "CNN mean head": Net(MeanHead, IMAGE, "Conv2D ReLU GlobalAvgPool2D Dense", 18),
    "CNN flattened by view": Net(Viewed, IMAGE, "Conv2D ReLU Dense LogSoftmax"),
    "CNN normalised input": Net(Normalised, IMAGE, "Affine Conv2D ReLU Dense"),
    "CNN that ends flattened": Net(cnn(nn.ReLU6(), nn.Flatten()), IMAGE, "Conv2D ReLU6 Flatten"),
    "CNN Softmax over channels": Net(cnn(nn.Softmax(1)), IMAGE, "Conv2D Softmax"),
    "CNN BatchNorm and Dropout2d": Net(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout2d(),
        nn.SiLU()), IMAGE, "BatchNorm Conv2D Swish"),
    "LeNet": Net(lenet, (1, 28, 28), "Conv2D Tanh AvgPool2D Conv2D Tanh AvgPool2D Dense Tanh Dense Tanh Dense"),
    "LeNet, opset 13": Net(lenet, (1, 28, 28),
        "Conv2D Tanh AvgPool2D Conv2D Tanh AvgPool2D Dense Tanh Dense Tanh Dense", 13),
    "VGG": Net(vgg, (3, 16, 16), "Conv2D ReLU Conv2D ReLU MaxPool2D Conv2D ReLU Conv2D ReLU MaxPool2D GlobalAvgPool2D "
        "Dense ReLU Dense"),
    "VGG, opset 20": Net(vgg, (3, 16, 16), "Conv2D ReLU Conv2D ReLU MaxPool2D Conv2D ReLU Conv2D ReLU MaxPool2D "
        "GlobalAvgPool2D Dense ReLU Dense", 20),
}  # fmt: skip


def export(net: Any, path: Path, x: Any, *, dynamo: bool, opset: int, dynamic: bool) -> None:
    options: dict[str, Any] = {"opset_version": opset, "dynamo": dynamo, "input_names": ["x"], "output_names": ["y"]}
    if dynamic and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("N")},)
    elif dynamic:
        options["dynamic_axes"] = {"x": {0: "N"}, "y": {0: "N"}}
    if dynamo:
        options |= {"external_data": False, "verbose": False}
    with torch.no_grad():
        torch.onnx.export(net, (x,), str(path), **options)


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", NETS)
def test_pytorch(name: str, dynamo: bool, tmp_path: Path) -> None:
    case = NETS[name]
    torch.manual_seed(0)
    net = lively(case.make())
    net = net.double() if case.double else net
    x = torch.randn(4, *case.shape, dtype=torch.float64 if case.double else torch.float32)
    path = tmp_path / "net.onnx"
    export(net, path, x, dynamo=dynamo, opset=case.opset, dynamic=case.dynamic)
    ours, layers = imported(path, x.numpy())
    assert layers == ((dynamo and case.dynamo_layers) or case.layers).split()
    with torch.no_grad():
        assert_close(ours, net(x).numpy())


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
def test_a_double_cnn_can_only_be_read_unchecked(dynamo: bool, tmp_path: Path) -> None:
    """onnxruntime has no Conv for double, so that there is nothing to compare with."""
    torch.manual_seed(0)
    net = cnn(nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))().double().eval()
    x = torch.randn(4, *IMAGE, dtype=torch.float64)
    path = tmp_path / "net.onnx"
    export(net, path, x, dynamo=dynamo, opset=20, dynamic=True)
    with pytest.raises(CheckpointError, match="onnxruntime refuses the model"):
        gm.load(path)
    model = Model.from_checkpoint(load(path, check=False))
    with torch.no_grad():
        assert_close(np.asarray(model(mx.array(x.numpy().astype(np.float32)))), net(x).numpy())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + x)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(7, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(self.lstm(x)[0][:, -1])


REFUSED = {
    "ResNet block": (Residual, IMAGE, "(Add)"),
    "grouped": (cnn(nn.Conv2d(4, 4, 3, groups=2)), IMAGE, "(Conv)"),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), IMAGE, "(Conv)"),
    "dilated": (cnn(nn.Conv2d(4, 4, 2, dilation=2)), IMAGE, "(Conv)"),
    "GELU": (mlp(nn.GELU()), ROW, "(Gelu)"),
    "LSTM": (Sequence, (6, 7), "(LSTM)"),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 3), IMAGE, "(ConvTranspose)"),
    "oblong kernel": (lambda: nn.Conv2d(3, 4, (3, 1)), IMAGE, "(Conv)"),
    "LayerNorm": (mlp(nn.LayerNorm(9)), ROW, "(LayerNormalization)"),
    "PReLU": (mlp(nn.PReLU()), ROW, "(PRelu)"),
    "hardtanh": (mlp(nn.Hardtanh()), ROW, "(Clip)"),
    "rounded up": (cnn(nn.MaxPool2d(2, ceil_mode=True)), (3, 9, 9), "(MaxPool)"),
}


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", REFUSED)
def test_pytorch_models_that_are_no_chain_of_our_layers(name: str, dynamo: bool, tmp_path: Path) -> None:
    make, shape, told = REFUSED[name]
    path = tmp_path / "net.onnx"
    export(make().eval(), path, torch.randn(2, *shape), dynamo=dynamo, opset=20, dynamic=name != "LSTM")
    with pytest.raises(UnsupportedError) as e:
        gm.load(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert told in str(e.value)


# -------------------------------------------------------------------------------------------------------- scikit-learn


def table(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32) + 2
    return x, rng.integers(0, classes, 120)


def fit_mlp(kind: str, activation: str, scaled: bool) -> tuple[Any, np.ndarray]:
    neural = pytest.importorskip("sklearn.neural_network")
    pipeline = pytest.importorskip("sklearn.pipeline")
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler
    x, y = table(4)
    options: dict[str, Any] = {"hidden_layer_sizes": (8, 5), "activation": activation, "max_iter": 20}
    with warnings.catch_warnings(action="ignore"):  # twenty steps are no convergence
        model = getattr(neural, f"MLP{kind}")(random_state=0, **options)
        return (pipeline.make_pipeline(scaler(), model) if scaled else model).fit(x, y), x


def to_onnx(model: Any, path: Path, x: np.ndarray, **options: Any) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    proto = skl2onnx.to_onnx(model, x[:1], **options)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_sklearn_classifier(activation: str, opset: int, tmp_path: Path) -> None:
    model, x = fit_mlp("Classifier", activation, scaled=False)
    path = tmp_path / "net.onnx"
    to_onnx(model, path, x, options={"zipmap": False}, target_opset=opset)
    ours, layers = imported(path, x)
    assert layers[-1] == "Softmax"
    assert_close(ours, model.predict_proba(x).astype(np.float32))


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_sklearn_regressor(activation: str, tmp_path: Path) -> None:
    model, x = fit_mlp("Regressor", activation, scaled=False)
    path = tmp_path / "net.onnx"
    to_onnx(model, path, x, target_opset=17)
    ours, layers = imported(path, x)
    assert layers[-1] == "Flatten"  # skl2onnx ends with a Reshape to one column
    assert_close(ours.ravel(), model.predict(x).astype(np.float32).ravel())


@pytest.mark.parametrize("kind", ["Classifier", "Regressor"])
def test_sklearn_scaler_before_a_network(kind: str, tmp_path: Path) -> None:
    """A StandardScaler is ``Scaler`` of ai.onnx.ml; without that domain skl2onnx writes Sub and Div."""
    model, x = fit_mlp(kind, "relu", scaled=True)
    path = tmp_path / "net.onnx"
    options = {id(model): {"zipmap": False}} if kind == "Classifier" else {}
    to_onnx(model, path, x, options=options, target_opset=17)
    if any(n.op_type == "Scaler" for n in onnx.load(path).graph.node):
        with pytest.raises(UnsupportedError, match=r"ai.onnx.ml:Scaler.*no layer does this"):
            gm.load(path)
        to_onnx(model, path, x, options=options, target_opset=17, black_op={"Scaler"})
    ours, layers = imported(path, x)
    assert layers[:2] == ["Affine", "Dense"]
    theirs = model.predict_proba(x) if kind == "Classifier" else model.predict(x)[:, None]
    assert_close(ours.reshape(theirs.shape), theirs.astype(np.float32))


def test_sklearn_zipmap_is_refused(tmp_path: Path) -> None:
    model, x = fit_mlp("Classifier", "relu", scaled=False)
    to_onnx(model, tmp_path / "net.onnx", x, target_opset=17)
    with pytest.raises(UnsupportedError) as e:
        gm.load(tmp_path / "net.onnx")
    assert str(tmp_path / "net.onnx") in str(e.value)


# ------------------------------------------------------------------------------------------------------------ our own

OWN: dict[str, Callable[[], ModelBuilder]] = {
    "MLP": lambda: ModelBuilder((1, 6)).add_affine().add_dense(8).add_swish().add_dense(3).add_log_softmax(),
    "CNN": lambda: ModelBuilder((1, 3, 8, 8)).add_conv2d(4, 3, 1, 1).add_batch_norm().add_relu6().add_avg_pool2d(2)
        .add_dropout(0.2).add_flatten().add_dense(5).add_softmax(),
    "global pooling": lambda: ModelBuilder((1, 3, 8, 8)).add_conv2d(6, 3, 2, 1).add_elu(0.5).add_max_pool2d(2)
        .add_global_avg_pool2d().add_dense(4).add_tanh(),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("name", OWN)
def test_our_own_without_the_description(name: str, opset: int, tmp_path: Path) -> None:
    model = Model(OWN[name]().compile())
    randomise(model)
    path = tmp_path / "net.onnx"
    gm.save(gm.Checkpoint(model.spec, extract_weights(model)), path, opset=opset)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    x = np.random.default_rng(0).standard_normal((5, *model.spec.input_shape[1:])).astype(np.float32)
    ours, _ = imported(path, x)
    np.testing.assert_array_equal(ours, np.asarray(model.eval()(mx.array(x))))
