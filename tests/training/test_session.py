"""The printed session, line by line as in the reference."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gometal_mlx.errors import SpecError
from gometal_mlx.layers import ModelBuilder, ModelSpec
from gometal_mlx.training.session import ModelArchitecturePrinter, TrainingSession


def cnn() -> ModelSpec:
    return (
        ModelBuilder((32, 3, 8, 8)).add_conv2d(4, 3, 2, 1, False, "conv1").add_batch_norm(name="bn1").add_relu("relu1")
        .add_leaky_relu(name="leaky").add_dropout(0.3, "drop").add_dense(10, True, "fc").add_softmax(-1, "softmax")
    ).compile()  # fmt: skip


def from_json(spec: ModelSpec) -> ModelSpec:
    """The spec with float numbers everywhere, as Go's JSON reader has them."""

    def floats(values: Any) -> Any:
        return tuple(float(v) for v in values)

    def number(value: Any) -> Any:
        return value if isinstance(value, bool) else float(value)

    layers = tuple(
        replace(
            s,
            parameters={k: number(v) for k, v in s.parameters.items()},
            input_shape=floats(s.input_shape),
            output_shape=floats(s.output_shape),
        )
        for s in spec.layers
    )
    return replace(spec, layers=layers, input_shape=floats(spec.input_shape), output_shape=floats(spec.output_shape))


CNN_TEXT = """\
Model Architecture:
Net(
  (conv1): Conv2d(3, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=false)
  (bn1): BatchNorm()
  (relu1): ReLU()
  (leaky): LeakyReLU()
  (drop): Dropout()
  (fc): Linear(in_features=64, out_features=10, bias=true)
  (softmax): Softmax(dim=-1)
)

Total parameters: 766
Trainable parameters: 766
Non-trainable parameters: 0
Input size (MB): 0.023
Forward/backward pass size (MB): 0.096
Params size (MB): 0.003
Estimated Total Size (MB): 0.123

"""
# elements: input 32*3*8*8 = 6144, the largest; output 320; so b is of 2 * (6144 + 320 + 6144) = 25216, c of 766,
# the total of 32126 elements: 32126 * 4 / 2^20 = 0.12255


@pytest.mark.parametrize("json", [False, True])
def test_architecture(json: bool) -> None:
    spec = from_json(cnn()) if json else cnn()
    assert ModelArchitecturePrinter("Net").text(spec) == CNN_TEXT


def test_print_architecture_goes_to_standard_output_or_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    printer, file = ModelArchitecturePrinter("Net"), io.StringIO()
    printer.print_architecture(cnn())
    printer.print_architecture(cnn(), file)
    assert capsys.readouterr().out == file.getvalue() == CNN_TEXT


@pytest.mark.parametrize(
    ("inputs", "outputs", "shown"),
    [(1, 999, "999"), (1, 1000, "1.0K"), (100, 1000, "100.0K"), (1000, 1000, "1.0M"), (1550, 1000, "1.6M")],
)
def test_parameter_counts_are_shortened(inputs: int, outputs: int, shown: str) -> None:
    spec = ModelBuilder((1, inputs)).add_dense(outputs, False).compile()
    text = ModelArchitecturePrinter("m").text(spec)
    assert f"\nTotal parameters: {shown}\nTrainable parameters: {shown}\nNon-trainable parameters: 0\n" in text


def test_sizes_where_a_layer_is_larger_than_the_input() -> None:
    spec = ModelBuilder((2**10, 2**8)).add_dense(2**9).add_dense(2**7).compile()  # 1 MB in, 2 MB, 0.5 MB out
    lines = ModelArchitecturePrinter("m").text(spec).splitlines()
    parameters = (2**8 * 2**9 + 2**9 + 2**9 * 2**7 + 2**7) * 4 / 2**20
    assert "Input size (MB): 1.000" in lines
    assert "Forward/backward pass size (MB): 7.000" in lines  # 2 * (1 + 0.5 + 2)
    assert f"Params size (MB): {parameters:.3f}" in lines
    assert f"Estimated Total Size (MB): {8 + parameters:.3f}" in lines


def test_a_spec_without_shapes_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model 'Net': a compiled spec is needed to print it; call compile\(\) first"):
        ModelArchitecturePrinter("Net").text(ModelSpec(()))


# the session


class Trainer(SimpleNamespace):
    """What a session needs of a trainer, and what it was told."""

    def __init__(self) -> None:
        super().__init__(spec=cnn(), epochs_told=[])

    def set_epoch(self, finished_epochs: int) -> None:
        self.epochs_told.append(finished_epochs)


def session(validation_steps: int = 2, trainer: Any = None) -> tuple[TrainingSession, io.StringIO]:
    file = io.StringIO()
    return TrainingSession(trainer or Trainer(), "Net", 3, 4, validation_steps, file), file


def timeless(text: str) -> str:
    """The text with times, rates and the bar's blocks replaced."""
    text = re.sub(r"\d\d:\d\d<\d\d:\d\d(, [\d.]+batch/s)?", "TIME", text)
    return re.sub(r"\|[█ ]{70}\|", "|BAR|", text)


def test_an_epoch_in_go_metals_layout() -> None:
    s, file = session()
    s.start_training()
    s.start_epoch(1)
    s.update_training_progress(2, 1.25, 0.5)
    s.update_training_progress(4, 1.0, 0.625)
    s.finish_training_epoch()
    s.start_validation()
    s.update_validation_progress(2, 0.75, -1)
    s.finish_validation_epoch()
    s.print_epoch_summary()
    head, bars = timeless(file.getvalue()).split("Starting training...\n")
    assert head == CNN_TEXT
    lines = [line.rstrip() for line in re.split("[\r\n]", bars)]
    assert lines == [
        "",
        "Epoch 1/3 (Training):  50%|BAR| 2/4 [TIME, loss=1.250, accuracy=50.00%]",
        "Epoch 1/3 (Training): 100%|BAR| 4/4 [TIME, loss=1.000, accuracy=62.50%]",
        "Epoch 1/3 (Training): 100%|BAR| 4/4 [TIME, loss=1.000, accuracy=62.50%]",
        "",
        "Epoch 1/3 (Validation): 100%|BAR| 2/2 [TIME, loss=0.750]",
        "Epoch 1/3 (Validation): 100%|BAR| 2/2 [TIME, loss=0.750]",
        "Epoch 1/3 Summary:",
        "  Training   - Loss: 1.0000, Accuracy: 62.50%",
        "  Validation - Loss: 0.7500",
        "",
        "",
    ]


def test_without_validation_there_is_neither_bar_nor_line() -> None:
    s, file = session(validation_steps=0)
    s.start_epoch(2)
    s.update_training_progress(1, 0.5)
    s.finish_training_epoch()
    s.start_validation()
    s.finish_validation_epoch()
    before = len(file.getvalue())
    s.print_epoch_summary()
    assert "Validation" not in file.getvalue()
    assert file.getvalue()[before:] == "Epoch 2/3 Summary:\n  Training   - Loss: 0.5000\n\n"
    with pytest.raises(SpecError, match="validation_steps is 0"):
        s.update_validation_progress(1, 0.5)


def test_the_summary_shows_no_validation_of_an_earlier_epoch() -> None:
    s, file = session()
    s.start_epoch(1)
    s.update_training_progress(4, 1.0)
    s.start_validation()
    s.update_validation_progress(2, 0.5)
    s.start_epoch(2)
    s.update_training_progress(4, 0.9)
    before = len(file.getvalue())
    s.print_epoch_summary()
    assert file.getvalue()[before:] == "Epoch 2/3 Summary:\n  Training   - Loss: 0.9000\n\n"


def test_the_trainer_is_told_how_many_epochs_are_finished() -> None:
    trainer = Trainer()
    s, _ = session(trainer=trainer)
    s.start_epoch(1)
    s.start_epoch(2)
    assert trainer.epochs_told == [0, 1]
    session(trainer=SimpleNamespace(spec=cnn()))[0].start_epoch(1)  # one without a schedule is left alone


@pytest.mark.parametrize(
    ("method", "arguments", "remedy"),
    [
        ("update_training_progress", (1, 0.5), "call start_epoch first"),
        ("finish_training_epoch", (), "call start_epoch first"),
        ("start_validation", (), "call start_epoch first"),
        ("update_validation_progress", (1, 0.5, 0.5), "call start_validation first"),
        ("finish_validation_epoch", (), "call start_validation first"),
        ("print_epoch_summary", (), "call start_epoch first"),
    ],
)
def test_calls_out_of_order_raise_one_line(method: str, arguments: tuple[float, ...], remedy: str) -> None:
    s, file = session()
    with pytest.raises(SpecError, match=f"TrainingSession: {method} .*{remedy}") as e:
        getattr(s, method)(*arguments)
    assert "\n" not in str(e.value)
    assert file.getvalue() == ""


def test_a_finished_bar_is_not_drawn_again() -> None:
    s, _ = session()
    s.start_epoch(1)
    with pytest.raises(SpecError, match="call update_training_progress first"):
        s.print_epoch_summary()
    s.finish_training_epoch()
    s.start_validation()
    s.finish_validation_epoch()
    for again in (s.finish_training_epoch, s.finish_validation_epoch):
        with pytest.raises(SpecError, match="needs a bar under way"):
            again()


@pytest.mark.parametrize("epoch", [0, -1, True, 1.0])
def test_epochs_are_counted_from_1(epoch: Any) -> None:
    with pytest.raises(SpecError, match="counted from 1"):
        session()[0].start_epoch(epoch)


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    s = TrainingSession(Trainer(), "Net", 1, 0, 0)  # type: ignore[arg-type]
    s.start_epoch(1)
    s.update_training_progress(0, 0.5, 1.0)
    s.print_epoch_summary()
    out = capsys.readouterr().out
    assert "Epoch 1/1 (Training): 100%|" in out
    assert out.endswith("  Training   - Loss: 0.5000, Accuracy: 100.00%\n\n")
