"""With MKL, which is 220 MB and so installed for this group only."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gometal_mlx import _blas

pytestmark = pytest.mark.interop

MKL = next((path for name in _blas.MKL_NAMES if (path := Path(sys.prefix, "lib", name)).is_file()), None)
if MKL is None:
    pytest.skip("MKL is not installed (make test-interop does it, on Linux and x86)", allow_module_level=True)

RUN = """
import hashlib, json, sys
import numpy as np
import gometal_mlx as gm
from gometal_mlx.checkpoints import extract_weights

folder, epochs, again = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resumed"
rng = np.random.default_rng(0)
x, y = rng.standard_normal((160, 3, 16, 16), np.float32), rng.integers(0, 10, 160)
padding = [bytearray(n) for n in rng.integers(1, 99, int(sys.argv[4]))]  # so that arrays lie elsewhere
if again:
    trainer = gm.ModelTrainer.resume(folder + "/half.safetensors")
else:
    spec = gm.ModelBuilder((64, 3, 16, 16)).add_conv2d(32, 3, 1, 1).add_relu().add_dropout(0.1).add_dense(96).compile()
    trainer = gm.ModelTrainer(spec, gm.TrainerConfig(seed=0, batch_size=64, optimizer_type="Adam"))
trainer.fit((x, y), epochs)
trainer.save(folder + "/half.safetensors")
weights = b"".join(w.data.tobytes() for w in extract_weights(trainer.model))
print(json.dumps([gm._blas.STATUS.path, gm._blas.STATUS.notes, hashlib.sha256(weights).hexdigest()]))
"""


def run(*arguments: object, **variables: str) -> list[object]:
    clean = {k: v for k, v in os.environ.items() if not re.search("BLAS|MKL|LANES|_NUM_THREADS", k)}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, env={**clean, **variables}, capture_output=True, text=True, check=True)
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(_blas.processor().get("vendor_id") != "GenuineIntel", reason="it is first on Intel alone")
def test_it_is_chosen(tmp_path: Path) -> None:
    assert run(tmp_path, 1, "begun", 0)[:2] == [str(MKL), []]


@pytest.mark.parametrize("lanes", ["1", "2"])
def test_a_run_resumed_in_a_new_process_is_the_unbroken_one(tmp_path: Path, lanes: str) -> None:
    variables = {"GOMETAL_BLAS": str(MKL), "GOMETAL_LANES": lanes, "MKL_NUM_THREADS": "2"}
    path, notes, unbroken = run(tmp_path, 4, "begun", 0, **variables)
    assert (path, notes) == (str(MKL), [])
    run(tmp_path, 2, "begun", 13, **variables)
    assert run(tmp_path, 2, "resumed", 7, **variables)[2] == unbroken
