"""The package as a whole: which part may import which, public names, docstrings, version."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gometal_mlx

PACKAGE = Path(gometal_mlx.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))

# A part imports only parts of a lower number. data knows nothing of models, and only training and later know it.
LEVELS = {
    "errors": 0, "_types": 0, "_version": 0, "_setting": 0, "_processor": 0, "_leaving": 0, "_forked": 1,
    "_blas": 1, "_malloc": 1, "_denormals": 1, "_cpu": 2, "_compile": 1, "layers": 2, "data": 1,
    "_lanes": 3, "_awake": 3, "optimizers": 3,
    "checkpoints": 4, "training": 5, "inference": 6, "cli": 8,
}  # fmt: skip
BASE = {"errors", "_types", "_version"}


def part(path: Path) -> str:
    """The part a file belongs to: the folder, or the module, directly under gometal_mlx."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """The parts of the package that a file imports anywhere, type checking and function bodies included."""
    package = ["gometal_mlx", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*stem, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "gometal_mlx" and len(name) > 1)


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    assert own in LEVELS, f"{own}: say in LEVELS which parts it may import"
    for other in imported_parts(path):
        if other == own:
            continue
        assert LEVELS[other] < LEVELS[own], f"{relative(path)} imports {other}"
        assert own != "data" or other in BASE, f"{relative(path)} imports {other}"
        assert other != "data" or LEVELS[own] >= LEVELS["training"], f"{relative(path)} imports data"


def test_the_import_rule_sees_imports() -> None:
    """The checker itself: relative, plain and nested imports are found."""
    assert set(imported_parts(PACKAGE / "inference" / "predictor.py")) >= {
        "_types",
        "checkpoints",
        "layers",
        "training",
    }
    assert "checkpoints" in set(imported_parts(PACKAGE / "cli" / "verify.py"))
    assert "layers" in set(imported_parts(PACKAGE / "checkpoints" / "onnx" / "verify.py"))


def modules() -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE)], "gometal_mlx.")
    return ["gometal_mlx", *sorted(m.name for m in found)]


@pytest.mark.parametrize("name", modules())
def test_module_is_documented_and_its_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or name == "gometal_mlx._version"  # one line that says itself
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert [n for n in names if not hasattr(module, n)] == []


def undocumented(body: list[ast.stmt], where: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{where}{node.name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_classes_and_functions_are_documented(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text()).body, "")) == []


# ------------------------------------------------------------------------------------------------------------ names

# what is promised to stay: where each name is imported from
NAMES = {
    "gometal_mlx": "load save Checkpoint CheckpointFormat ModelBuilder ModelSpec LayerSpec Model ModelTrainer "
    "TrainerConfig Callback History ArrayDataset DataLoader Predictor errors __version__",
    "gometal_mlx.layers": "ModelBuilder ModelSpec LayerSpec LayerType LayerFactory Model",
    "gometal_mlx.training": "ModelTrainer TrainerConfig OptimizerType LossFunction ProblemType EngineType "
    "TrainingResult History Callback RestoreReport",
    "gometal_mlx.data": "ArrayDataset DataLoader",
    "gometal_mlx.checkpoints": "Checkpoint WeightTensor TrainingState OptimizerState OptimizerTensor "
    "CheckpointMetadata CheckpointFormat CheckpointSaver extract_weights load_weights",
    "gometal_mlx.inference": "Predictor",
    "gometal_mlx.errors": "GoMetalError SpecError ShapeError CheckpointError UnsupportedError",
}
REQUIRED = inspect.Parameter.empty
# (where, name, arguments in order with their defaults); more arguments may follow
SIGNATURES: list[tuple[str, str, dict[str, Any]]] = [
    ("layers", "ModelBuilder", {"input_shape": REQUIRED}),
    ("layers", "ModelBuilder.add_dense", {"output_size": REQUIRED, "use_bias": True, "name": None}),
    (
        "layers", "ModelBuilder.add_conv2d",
        {"output_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0, "use_bias": True,
         "name": None},
    ),
    (
        "layers", "ModelBuilder.add_batch_norm",
        {"num_features": None, "eps": 1e-5, "momentum": 0.1, "affine": True, "name": None},
    ),
    ("layers", "ModelBuilder.add_dropout", {"rate": 0.5, "name": None}),
    ("layers", "ModelBuilder.add_max_pool2d", {"pool_size": 2, "stride": None, "padding": 0, "name": None}),
    ("layers", "ModelBuilder.add_softmax", {"axis": -1, "name": None}),
    ("layers", "ModelBuilder.add_leaky_relu", {"negative_slope": 0.01, "name": None}),
    ("layers", "ModelBuilder.add_elu", {"alpha": 1.0, "name": None}),
    *(("layers", f"ModelBuilder.add_{n}", {"name": None}) for n in ("relu", "sigmoid", "tanh", "swish")),
    ("layers", "ModelBuilder.add_layer", {"layer_spec": REQUIRED}),
    ("layers", "ModelBuilder.compile", {}),
    ("layers", "ModelSpec.summary", {}),
    ("layers", "Model", {"spec": REQUIRED, "seed": None}),
    ("layers", "Model.__call__", {"x": REQUIRED}),
    ("layers", "Model.from_checkpoint", {"checkpoint": REQUIRED}),
    ("training", "ModelTrainer", {"model": REQUIRED, "config": None}),
    ("training", "ModelTrainer.train_batch", {"inputs": REQUIRED, "labels": REQUIRED}),
    (
        "training", "ModelTrainer.fit",
        {"data": REQUIRED, "epochs": REQUIRED, "validation_data": None, "callbacks": (), "checkpoints": None},
    ),
    ("training", "ModelTrainer.evaluate", {"data": REQUIRED}),
    ("training", "ModelTrainer.predict", {"inputs": REQUIRED}),
    ("training", "ModelTrainer.checkpoint", {"description": "", "tags": ()}),
    ("training", "ModelTrainer.restore", {"checkpoint": REQUIRED}),
    ("training", "ModelTrainer.save", {"path": REQUIRED}),
    ("training", "ModelTrainer.resume", {"path": REQUIRED}),
    *(
        ("training", f"Callback.on_{n}", {"event": REQUIRED})
        for n in ("fit_begin", "epoch_begin", "step_end", "epoch_end", "fit_end")
    ),
    ("data", "ArrayDataset", {"x": REQUIRED, "y": REQUIRED}),
    (
        "data", "DataLoader",
        {"dataset": REQUIRED, "batch_size": 32, "shuffle": False, "seed": None, "drop_last": False},
    ),
    ("data", "DataLoader.state_dict", {}),
    ("data", "DataLoader.load_state_dict", {"state": REQUIRED}),
    ("checkpoints", "CheckpointSaver.save_checkpoint", {"checkpoint": REQUIRED, "path": REQUIRED}),
    ("checkpoints", "CheckpointSaver.load_checkpoint", {"path": REQUIRED}),
    ("checkpoints", "load", {"path": REQUIRED}),
    ("checkpoints", "save", {"checkpoint": REQUIRED, "path": REQUIRED}),
    ("checkpoints", "extract_weights", {"model": REQUIRED}),
    ("checkpoints", "load_weights", {"model": REQUIRED, "weights": REQUIRED}),
    ("inference", "Predictor", {"source": REQUIRED}),
    ("inference", "Predictor.predict", {"inputs": REQUIRED}),
]  # fmt: skip
# data classes: their fields come in go-metal's order
FIELDS = {
    "layers.LayerSpec": "type name parameters input_shape output_shape parameter_shapes parameter_count",
    "layers.ModelSpec": "layers total_parameters parameter_shapes input_shape output_shape compiled",
    "checkpoints.Checkpoint": "model_spec weights training_state optimizer_state metadata extras",
    "checkpoints.WeightTensor": "name shape data layer type",
    "checkpoints.TrainingState": "epoch step learning_rate best_loss best_accuracy total_steps",
    "checkpoints.OptimizerState": "type parameters state_data",
    "checkpoints.OptimizerTensor": "name shape data state_type",
    "checkpoints.CheckpointMetadata": "version framework created_at description tags",
    "training.TrainerConfig": "batch_size learning_rate optimizer_type",
}


@pytest.mark.parametrize("where", NAMES)
def test_public_names(where: str) -> None:
    module = importlib.import_module(where)
    missing = [n for n in NAMES[where].split() if not hasattr(module, n)]
    assert missing == []
    assert where == "gometal_mlx.errors" or set(NAMES[where].split()) <= set(module.__all__)


def resolve(where: str, name: str) -> Any:
    value: Any = importlib.import_module(f"gometal_mlx.{where}")
    for attribute in name.split("."):
        value = getattr(value, attribute)
    return value


@pytest.mark.parametrize(("where", "name", "arguments"), SIGNATURES, ids=[name for _, name, _ in SIGNATURES])
def test_signature(where: str, name: str, arguments: dict[str, Any]) -> None:
    found = [p for p in inspect.signature(resolve(where, name)).parameters.values() if p.name != "self"]
    assert {p.name: p.default for p in found[: len(arguments)]} == arguments
    assert [p.name for p in found[: len(arguments)]] == list(arguments)
    for p in found[: len(arguments)]:
        assert p.kind is p.POSITIONAL_OR_KEYWORD
    for p in found[len(arguments) :]:
        assert p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL), f"{p.name} needs a default"


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    wanted = FIELDS[name].split()
    assert list(inspect.signature(resolve(*name.split("."))).parameters)[: len(wanted)] == wanted


def test_trainer_config_has_go_metal_fields() -> None:
    wanted = """batch_size learning_rate optimizer_type loss_function problem_type beta1 beta2 epsilon weight_decay
        alpha momentum centered engine_type use_hybrid_engine use_dynamic_engine inference_only seed"""
    assert set(wanted.split()) <= set(inspect.signature(resolve("training", "TrainerConfig")).parameters)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("training.ModelTrainer", "spec step learning_rate optimizer_state"),
        ("training.TrainingResult", "loss accuracy"),
        ("layers.ModelSpec", "summary __repr__ _repr_html_"),
        ("data.DataLoader", "__iter__ __len__"),
    ],
)
def test_attributes(name: str, attributes: str) -> None:
    mro = resolve(*name.split(".")).__mro__[:-1]  # object has __repr__, too
    known = {a for c in mro for a in [*vars(c), *getattr(c, "__annotations__", {})]}
    assert [a for a in attributes.split() if a not in known] == []


def test_learning_rate_can_be_set() -> None:
    assert resolve("training", "ModelTrainer").learning_rate.fset is not None


def test_errors_are_value_errors_where_a_value_is_wrong() -> None:
    errors = gometal_mlx.errors
    for name in ("SpecError", "ShapeError", "CheckpointError"):
        assert issubclass(getattr(errors, name), ValueError)
        assert issubclass(getattr(errors, name), errors.GoMetalError)
    assert issubclass(errors.UnsupportedError, errors.GoMetalError)


def test_formats_have_go_metal_numbers() -> None:
    formats = {f.name: int(f) for f in gometal_mlx.CheckpointFormat}
    assert (formats["JSON"], formats["ONNX"]) == (0, 1)
    assert "SAFETENSORS" in formats


# ----------------------------------------------------------------------------------------------- import and version


def test_import_is_light() -> None:
    code = """
import sys
import gometal_mlx
gometal_mlx.ModelTrainer(gometal_mlx.ModelBuilder((2, 3)).add_dense(2).compile())
heavy = {"onnx", "onnxruntime", "sklearn", "matplotlib", "IPython", "PIL", "pandas", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "MLX_DISABLE_COMPILE": "1"}  # a machine without g++ is warned of
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == gometal_mlx.__version__


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", gometal_mlx.__version__)


def test_types_are_published() -> None:
    assert (PACKAGE / "py.typed").is_file()
