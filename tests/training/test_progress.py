"""The progress bar's layout: the reference, section 7.1."""

import io
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import Callback, Event, ModelTrainer, ProgressBar, ProgressPrinter, TrainerConfig, progress

FULL = "\u2588"


class Clock:
    """Stands in for the time module; tests move it."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def bar_of(description: str, total: int, **options: int) -> tuple[ProgressBar, io.StringIO]:
    file = io.StringIO()
    return ProgressBar(description, total, file=file, **options), file


def test_example_of_the_reference(clock: Clock) -> None:
    bar, file = bar_of("Epoch 1/2 (Training)", 10)
    clock.now += 5 / 4.2  # so that the rate is 4.20
    bar.update(5, {"loss": 0.512, "accuracy": 0.8125})
    blocks = FULL * 35 + " " * 35
    told = f"Epoch 1/2 (Training):  50%|{blocks}| 5/10 [00:01<00:01, 4.20batch/s, loss=0.512, accuracy=81.25%]"
    assert file.getvalue() == "\r" + told


def test_nothing_done_has_no_rate_and_no_estimate(clock: Clock) -> None:
    bar, _ = bar_of("x", 4)
    clock.now += 61
    assert bar.line() == f"x:   0%|{' ' * 70}| 0/4 [01:01<00:00]"


@pytest.mark.parametrize(
    ("step", "percent", "blocks"),
    [(1, " 33", 23), (2, " 67", 46), (3, "100", 70), (5, "100", 70), (-1, "  0", 0)],
)
def test_share(clock: Clock, step: int, percent: str, blocks: int) -> None:
    bar, _ = bar_of("x", 3)
    clock.now += 1
    bar.update(step)
    assert bar.line().startswith(f"x: {percent}%|{FULL * blocks}{' ' * (70 - blocks)}| {step}/3 [00:01<")


@pytest.mark.parametrize(
    ("seconds", "step", "times"),
    [(0.9, 1, "00:00<00:02"), (59.99, 2, "00:59<00:59"), (60, 1, "01:00<03:00"), (7200, 3, "120:00<40:00")],
)
def test_minutes_are_not_wrapped_into_hours(clock: Clock, seconds: float, step: int, times: str) -> None:
    bar, _ = bar_of("x", 4)
    clock.now += seconds
    bar.update(step)
    assert f"[{times}, " in bar.line()


def test_metrics_keep_their_order_and_format(clock: Clock) -> None:
    bar, _ = bar_of("x", 2)
    bar.update(1, {"val_acc": 0.5, "loss": 1.23456, "accuracy": 1.0, "f1": 0.5})
    assert bar.line().endswith("[00:00<00:00, val_acc=50.00%, loss=1.235, accuracy=100.00%, f1=0.500]")
    bar.update_metrics({"loss": 2.0, "mae": 3.0})
    assert bar.line().endswith("val_acc=50.00%, loss=2.000, accuracy=100.00%, f1=0.500, mae=3.000]")
    bar.update(2, {"loss": 1.0})
    assert bar.line().endswith("[00:00<00:00, loss=1.000]")
    bar.update(2)
    assert bar.line().endswith("[00:00<00:00]")


def test_the_callers_metrics_are_left_alone(clock: Clock) -> None:
    bar, _ = bar_of("x", 2)
    mine = {"loss": 1.0}
    bar.update(1, mine)
    bar.update_metrics({"accuracy": 0.5})
    assert mine == {"loss": 1.0}


@pytest.mark.parametrize("total", [0, -3])
def test_no_steps_at_all(clock: Clock, total: int) -> None:
    bar, file = bar_of("x", total)
    bar.update(0)
    bar.finish()
    line = f"\rx: 100%|{FULL * 70}| 0/0 [00:00<00:00]"
    assert file.getvalue() == line + line + "\n"


def test_a_longer_line_is_cleared(clock: Clock) -> None:
    bar, file = bar_of("x", 2, width=3)
    bar.update(1, {"loss": 0.5, "mae": 2.0})
    bar.update(1, {"loss": 0.5})
    bar.update(1, {"loss": 0.5})
    _, long, short, last = file.getvalue().split("\r")
    assert len(long) == len(short) > len(last)
    assert short.rstrip() == last == f"x:  50%|{FULL}  | 1/2 [00:00<00:00, loss=0.500]"


def test_finish_fills_the_bar_and_ends_the_line(clock: Clock) -> None:
    bar, file = bar_of("x", 4, width=4)
    clock.now += 2
    bar.update(1, {"loss": 0.5})
    bar.finish()
    assert file.getvalue().endswith(f"\rx: 100%|{FULL * 4}| 4/4 [00:02<00:00, 2.00batch/s, loss=0.500]\n")
    bar.update(1)
    assert file.getvalue().rpartition("\r")[2] == bar.line()  # nothing is left to clear on the new line


def test_draws_on_standard_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ProgressBar("x", 1).update(1)
    out, err = capsys.readouterr()
    assert (out, err[:8]) == ("", "\rx: 100%")


# ------------------------------------------------------------------------------------------------- ProgressPrinter


def event(**values: object) -> Event:
    return Event(trainer=None, **values)  # type: ignore[arg-type]


def result(loss: float, accuracy: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(loss=loss, accuracy=accuracy)


def test_printer_draws_at_most_once_an_interval(clock: Clock) -> None:
    file = io.StringIO()
    printer = ProgressPrinter(file=file, interval_s=1.0, width=2)
    printer.on_epoch_begin(event(epoch=1, epochs=2, batches=4))
    for batch in (1, 2, 3, 4):
        clock.now += 0.4
        printer.on_step_end(event(epoch=1, epochs=2, batch=batch, batches=4, result=result(0.5, 0.25)))
    drawn = file.getvalue().split("\r")[1:]
    assert [re.findall(r" (\d/4) ", line) for line in drawn] == [["1/4"], ["4/4"]]
    assert drawn[0] == "Epoch 1/2:  25%|  | 1/4 [00:00<00:01, 2.50batch/s, loss=0.500, accuracy=25.00%]"


def test_printer_ends_an_epoch_with_its_metrics(clock: Clock) -> None:
    file = io.StringIO()
    printer = ProgressPrinter(file=file, width=2)
    printer.on_epoch_begin(event(epoch=1, epochs=1, batches=4))
    clock.now += 1
    printer.on_epoch_end(
        event(epoch=1, epochs=1, batch=4, batches=4, metrics={"loss": 0.5, "learning_rate": 0.1, "val_accuracy": 0.75})
    )
    last = file.getvalue().split("\r")[-1]
    assert last == f"Epoch 1/1: 100%|{FULL * 2}| 4/4 [00:01<00:00, 4.00batch/s, loss=0.500, val_accuracy=75.00%]\n"


@pytest.mark.parametrize("problem", ["Classification", "Regression"])
def test_printer_in_a_run(problem: str) -> None:
    file = io.StringIO()
    trainer = ModelTrainer(
        ModelBuilder((4, 3)).add_dense(2).compile(), TrainerConfig(batch_size=4, problem_type=problem, seed=0)
    )
    labels = np.zeros(8, np.int32) if problem == "Classification" else np.zeros((8, 2))
    trainer.fit((np.ones((8, 3)), labels), 2, callbacks=[ProgressPrinter(file=file, interval_s=0)])
    lines = file.getvalue().split("\n")
    assert [line.split("\r")[-1][:15] for line in lines] == ["Epoch 1/2: 100%", "Epoch 2/2: 100%", ""]
    assert ("accuracy=" in lines[0]) is (problem == "Classification")
    assert sys.stderr is not file


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("columns", "blocks"), [(200, 70), (110, 13), (80, 0), (20, 0), (0, 70)])
def test_a_line_fits_the_terminal(columns: int, blocks: int, clock: Clock) -> None:
    import fcntl
    import pty
    import struct
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(writer, "w") as file, os.fdopen(reader, "rb"):
        bar = ProgressBar("Epoch 1/2", 10, file=file)
        clock.now += 1
        bar.current, bar._metrics = 10, {"loss": 0.5, "accuracy": 0.5, "val_loss": 0.5}
        line = bar.line()
    assert line.count(FULL) == blocks
    assert len(line) == columns - 1 if 0 < columns < 200 else line.endswith("val_loss=0.500]")


def test_what_ends_a_run_is_told_on_a_line_of_its_own() -> None:
    class Ends(Callback):
        def on_step_end(self, event: Event) -> None:
            raise OverflowError

    file = io.StringIO()
    spec = ModelBuilder((4, 3)).add_dense(2).compile()
    with pytest.raises(OverflowError):
        ModelTrainer(spec).fit((np.zeros((8, 3)), [0, 1] * 4), 2, callbacks=[ProgressPrinter(file=file), Ends()])
    assert re.fullmatch(r"\r[^\n]+\n", file.getvalue())
