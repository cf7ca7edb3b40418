"""Damaged ONNX files, for as long as you like: only GoMetalError may come out, and never a wrong model.

    python benchmarks/fuzz_onnx.py --seconds 1200 --out /tmp/fuzz-onnx      # keep going; findings go to the folder
    python benchmarks/fuzz_onnx.py --minimise FILE > SMALLER                # the smallest file with the same failure

What is tried on every file: load it without a check. On one in a few: load it with the tensors of other files, which
must be the same where there are none; build the model and run it; export it and load that again, which must give the
same bits; let onnxruntime judge the import. How it goes on, and what it keeps: fuzzing.py.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
from fuzz_onnx_mutations import EXTERNAL_FILE, mutate, smaller
from fuzzing import ROOT, Disagreement, Subject, difference, main, readable
from onnx import TensorProto, helper, numpy_helper

THOROUGH_ONE_IN = 6  # files on which everything is tried
LONGEST_MESSAGE = 20_000  # characters; names of a file's own stand in it
SMALL = 1 << 14  # numbers in an activation of a model that is run
WRONG = 1e-3  # relative: what rounding explains is smaller
MODERATE = 1e6  # larger numbers lose digits in sums, smaller ones to 0


class Target:
    """Loads a file in every way; anything but a GoMetalError is raised."""

    def __init__(self) -> None:
        self.onnx: Any = importlib.import_module("gometal_mlx.checkpoints.onnx")
        self.reader: Any = importlib.import_module("gometal_mlx.checkpoints.onnx.reader")
        self.mx: Any = importlib.import_module("mlx.core")
        self.model: Any = importlib.import_module("gometal_mlx.layers").Model
        self.error: type[Exception] = importlib.import_module("gometal_mlx.errors").GoMetalError
        self.counts: Counter[str] = Counter()
        outer = tempfile.mkdtemp(prefix="fuzz-onnx-")
        atexit.register(shutil.rmtree, outer, ignore_errors=True)
        self.folder = make_folder(Path(outer))
        self.path = self.folder / "case.onnx"

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        plain = self.load(check=False)
        thorough, external = zlib.crc32(data) % THOROUGH_ONE_IN == 0, b"location" in data
        found = self.load(check=False, external_data=True) if thorough or external else plain
        if plain is not None and found is not plain:
            same(plain, found, "external_data=True")
        if found is None:
            return
        self.counts["loaded"] += 1
        if not thorough:
            return
        checkpoint = replace(found, notes=[])
        try:
            model = self.model.from_checkpoint(checkpoint)
        except self.error as e:
            self.readable(e)
            self.counts["loaded, but no model"] += 1
            return
        self.again(checkpoint)
        shapes = [model.spec.input_shape, *(s.output_shape for s in model.spec.layers)]
        if max(math.prod(s[1:]) for s in shapes) <= SMALL:
            model.eval()
            np.asarray(model(self.mx.zeros((2, *model.spec.input_shape[1:]))))
            self.compare(external_data=plain is None)

    def load(self, **options: Any) -> Any:
        """The checkpoint, or None if it is refused."""
        try:
            return self.onnx.load(self.path, **options)
        except self.error as e:
            self.readable(e)
            return None

    def readable(self, e: Exception) -> None:
        readable(e, LONGEST_MESSAGE)
        if self.path.name not in str(e):
            raise Disagreement("message without the file's name:") from e

    def again(self, checkpoint: Any) -> None:
        """What is exported must be loaded as the same."""
        path = self.folder / "again.onnx"
        try:
            self.onnx.save(checkpoint, path, verify=False)
        except self.error as e:
            readable(e, LONGEST_MESSAGE)
            self.counts["loaded, but not exported"] += 1
            return
        try:
            same(checkpoint, self.onnx.load(path, check=False), "exported")
        except self.error as e:
            raise Disagreement(f"exported and refused: {e}") from e
        self.counts["exported and loaded again"] += 1

    def compare(self, *, external_data: bool) -> None:
        """The check must agree; what it refuses must be onnxruntime's fault, or come from absurd numbers."""
        reports: list[Any] = []
        compare = self.reader.compare

        def noted(*args: Any, **options: Any) -> Any:
            reports.append((compare(*args, **options), args[1]))
            return reports[-1][0]

        self.reader.compare = noted
        try:
            self.onnx.load(self.path, external_data=external_data)
            self.counts["compared with onnxruntime"] += len(reports)
        except self.error as e:
            self.readable(e)
            if "onnxruntime refuses" in str(e) or "onnxruntime fails" in str(e):
                self.counts["refused by onnxruntime" if "refuses" in str(e) else "not run by onnxruntime"] += 1
            elif "too large to be compared" in str(e):
                self.counts["too large to be compared"] += 1
            elif not reports:
                raise Disagreement(f"check=True: {str(e)[:300]}") from e
            elif reports[0][0].relative_difference > WRONG and self.moderate(*reports[0]):
                raise Disagreement(f"{self.operators()}: {str(e)[:300]}") from e
            else:
                self.counts["differs by rounding or overflow"] += 1
        finally:
            self.reader.compare = compare

    def moderate(self, report: Any, model: Any) -> bool:
        """Whether no number is so large or so small that float32 explains any difference."""
        tensors = [*onnx.ModelProto.FromString(self.path.read_bytes()).graph.initializer]
        numbers = [numpy_helper.to_array(t) for t in tensors if t.data_location != TensorProto.EXTERNAL]
        numbers += [np.asarray(p) for p in model.parameters().values() if isinstance(p, self.mx.array)]
        sizes = [np.abs(n.astype(np.float64)).max() for n in numbers if n.size and n.dtype.kind == "f"]
        largest = max(sizes, default=0.0)
        usual = 1 / MODERATE < report.largest_output < MODERATE and largest < MODERATE
        return usual and math.isfinite(report.largest_difference)

    def operators(self) -> str:
        """What tells one wrong import from another."""
        m = onnx.ModelProto.FromString(self.path.read_bytes())
        return "onnxruntime differs " + " ".join(sorted({n.op_type for n in m.graph.node}))


def same(a: Any, b: Any, what: str) -> None:
    """Architecture and weights, bit for bit."""
    if b is None:
        raise Disagreement(f"{what}: refused")
    for x, y in itertools.zip_longest(a.model_spec.layers, b.model_spec.layers):
        if x != y:
            raise Disagreement(f"{what}, layers: {difference(repr(x), repr(y))}")
    ours, theirs = ({w.name: (tuple(w.shape), w.data.tobytes()) for w in c.weights} for c in (a, b))
    if ours != theirs:
        names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
        raise Disagreement(f"{what}, weights: {names}"[:2000])


def make_folder(folder: Path) -> Path:
    """A folder for the files, with others in it and around it that external data may name."""
    inner = folder / "model"
    (inner / "sub").mkdir(parents=True)
    numbers = np.linspace(-1, 1, 1000, dtype=np.float32).tobytes()
    for path in (inner / EXTERNAL_FILE, inner / "sub" / "w.bin", folder / "secret.bin"):
        path.write_bytes(numbers)
    (inner / "link.bin").symlink_to(folder / "secret.bin")
    (inner / "linked").symlink_to(folder)
    os.mkfifo(inner / "fifo")
    return inner


# -------------------------------------------------------------------------------------------------------------- seeds

# Tensors that are declared and not made get random numbers. The styles: PyTorch, tf2onnx, skl2onnx, and every operator
# that a layer or the folding of constants takes.
GRAPHS = """
(float[N,3,6,6] x) => (float[N,2] y) <float[4,3,3,3] k, float[4] kb, float[4] s, float[4] b, float[4] m, float[4] v,
    float[2,16] w, float[2] wb> {
  a = Conv <dilations = [1, 1], group = 1, kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1]> (x, k, kb)
  c = BatchNormalization <epsilon = 0.00001, momentum = 0.9> (a, s, b, m, v)
  d = Relu (c)
  e = MaxPool <kernel_shape = [3, 3], strides = [3, 3], pads = [0, 0, 0, 0]> (d)
  f = Flatten <axis = 1> (e)
  y = Gemm <alpha = 1.0, beta = 1.0, transB = 1> (f, w, wb) }

(float[N,3,6,6] x) => (float[N,5] y) <float[4,3,1,1] k, float[4,5] w, int64[1] r = {-1}, int64 z = {0},
    int64[1] o = {0}> {
  a = Conv (x, k)
  b = LeakyRelu <alpha = 0.2> (a)
  c = GlobalAveragePool (b)
  s = Shape (c)
  t = Gather <axis = 0> (s, z)
  u = Unsqueeze (t, o)
  v = Concat <axis = 0> (u, r)
  d = Reshape (c, v)
  y = MatMul (d, w) }

(float[N,6,8,3] x) => (float[N,7] y) <float[5,3,3,3] k, float[1,5,1,1] cb, float[60,7] w, float[7] wb,
    int64[2] flat = {-1, 60}> {
  a = Transpose <perm = [0, 3, 1, 2]> (x)
  b = Conv <pads = [1, 1, 1, 1], strides = [1, 1], kernel_shape = [3, 3]> (a, k)
  c = Add (b, cb)
  d = Relu (c)
  e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
  f = Transpose <perm = [0, 2, 3, 1]> (e)
  g = Reshape (f, flat)
  h = MatMul (g, w)
  y = Add (h, wb) }

(float[N,2,5,3] x) => (float[N,4] y) <float[30] m, float[30] n, float[30,4] w> {
  a = Transpose <perm = [0, 3, 1, 2]> (x)
  b = Elu <alpha = 0.5> (a)
  c = Transpose <perm = [0, 2, 3, 1]> (b)
  d = Flatten (c)
  e = Mul (d, m)
  f = Add (e, n)
  y = MatMul (f, w) }

(float[N,4,5,3] x) => (float[N,2] y) <float[3] m, int64[2] axes = {1, 2}, float[3,2] w> {
  a = Transpose <perm = [0, 3, 1, 2]> (x)
  i = Transpose <perm = [0, 2, 3, 1]> (a)
  j = Add (i, m)
  k = Transpose <perm = [0, 3, 1, 2]> (j)
  b = GlobalAveragePool (k)
  c = Transpose <perm = [0, 2, 3, 1]> (b)
  d = Squeeze (c, axes)
  y = MatMul (d, w) }

(float[N,3,4,2] x) => (float[N,2,3,4] y) {
  a = Transpose <perm = [0, 3, 1, 2]> (x)
  b = Relu (a)
  c = Transpose <perm = [0, 2, 3, 1]> (b)
  d = Softmax <axis = 3> (c)
  y = Transpose <perm = [0, 3, 1, 2]> (d) }

(float[N,4] x) => (int64[N] label, float[N,3] p) <float[4,3] w, float[3] b> {
  a = MatMul (x, w)
  z = Add (a, b)
  p = Softmax <axis = 1> (z)
  i = ArgMax <axis = 1, keepdims = 0> (p)
  label = Cast <to = 7> (i) }

(float[N,4] x) => (float[N,3] y) <float[1,4] m, float[1,4] s, float[4,6] w, float[6] b, float[6,3] v> {
  c = Cast <to = 1> (x)
  d = Sub (c, m)
  e = Div (d, s)
  f = MatMul (e, w)
  g = Add (f, b)
  h = Tanh (g)
  i = Dropout (h)
  j = Identity (i)
  k = MatMul (j, v)
  y = LogSoftmax <axis = -1> (k) }

(float[N,3,4,4] x) => (float[N,3,1,1] y) <float[3,1,1] m, float n, float lo = {0}, float hi = {6},
    int64[2] axes = {2, 3}> {
  a = Mul (m, x)
  b = Sub (n, a)
  c = Clip (b, lo, hi)
  d = Sigmoid (c)
  e = Mul (c, d)
  f = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], count_include_pad = 1> (e)
  y = ReduceMean <keepdims = 1> (f, axes) }

(float[N,3] x) => (float[N,4] y) <float[8,3] w, float[4] b, int64[1] o = {0}, int64[1] p = {4}, int64[1] q = {0},
    int64[2] s = {3, 4}, int64[3] i = {0, 2, 1}, float two = {2.0}, float16[4] h> {
  a = Slice (w, o, p, q)
  c = Transpose <perm = [1, 0]> (a)
  d = Gather <axis = 0> (c, i)
  e = Mul (d, two)
  f = Reshape (e, s)
  u = Unsqueeze (f, o)
  v = Squeeze (u, o)
  n = Neg (v)
  t = Cast <to = 1> (h)
  k = Concat <axis = 0> (t)
  g = Div (k, two)
  l = Sub (g, b)
  r = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
  z = Add (l, r)
  y = Gemm <transB = 0> (x, n, z) }

(float[2,3,4,4] x) => (float[2,3] y) <int64[2] s = {2, -1}, float[48,3] w> {
  f = Reshape (x, s)
  g = MatMul (f, w)
  y = Relu (g) }

(double[N,3,5] x) => (double[N,3,5] y) <double[3,1] m> {
  a = Softmax <axis = 2> (x)
  b = Add (a, m)
  y = Tanh (b) }
"""
OPSETS = (18, 13, 21)


def handmade(text: str, opset: int, name: str) -> bytes:
    """A graph of onnx's own language, with random numbers for what is only declared."""
    m = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}], producer_name: "{name}">\ng {text}')
    g, rng = m.graph, np.random.default_rng(len(text))
    made = {o for n in g.node for o in n.output}
    for node in g.node:
        node.name = f"n_{node.output[0]}"
        if opset < 18 and node.op_type == "ReduceMean":
            node.input.pop()
            node.attribute.append(helper.make_attribute("axes", [2, 3]))
    for info in [v for v in g.value_info if v.name not in made]:
        tensor = info.type.tensor_type
        values = np.asarray(rng.uniform(0.5, 1.5, [d.dim_value for d in tensor.shape.dim]))
        values = values.astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if all(t.name != info.name for t in g.initializer):
            g.initializer.append(numpy_helper.from_array(values, info.name))
    del g.value_info[:]
    return bytes(m.SerializeToString())


def exported() -> list[bytes]:
    """Small stacks as our own exporter writes them."""
    checkpoints: Any = importlib.import_module("gometal_mlx.checkpoints")
    layers: Any = importlib.import_module("gometal_mlx.layers")
    builder = layers.ModelBuilder((2, 3, 6, 6)).add_conv2d(2, 3, 1, 1, True, "conv").add_batch_norm(name="bn")
    builder.add_leaky_relu(0.25, "leaky").add_max_pool2d(2, name="pool").add_batch_norm(affine=False, name="plain")
    image = builder.add_elu(0.5, "elu").add_dropout(0.3, "drop").add_dense(3, True, "fc").add_swish("swish").compile()
    builder = layers.ModelBuilder((1, 3)).add_dense(4, True, "fc1").add_relu("relu").add_dense(2, False, "fc2")
    table = builder.add_softmax(-1, "softmax").compile()
    stack = [layers.Affine(name="scale"), layers.ReLU6(name="six"), layers.AvgPool2D(name="mean", pool_size=2)]
    stack += [layers.LogSoftmax(name="log", axis=1), layers.GlobalAvgPool2D(name="all"), layers.Flatten(name="flat")]
    others = layers.ModelSpec.from_layers([*stack, layers.Sigmoid(name="last")], (1, 3, 4, 4))
    axis = layers.ModelSpec.from_layers([layers.Softmax(name="first", axis=1), layers.Tanh(name="tanh")], (1, 3, 2, 2))
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.onnx"
        for i, spec in enumerate((image, table, others, axis)):
            checkpoint = checkpoints.Checkpoint(spec, checkpoints.extract_weights(layers.Model(spec, seed=i)))
            for options in ({}, {"opset": 13, "keep_dropout": True}, {"opset": 21, "float16_weights": True}):
                checkpoints.save(checkpoint, path, verify=False, **options)
                files.append(path.read_bytes())
    return [*files, without_description(files[0])]


def without_description(data: bytes) -> bytes:
    """Only the graph is left to read."""
    m = onnx.ModelProto.FromString(data)
    del m.metadata_props[:]
    return bytes(m.SerializeToString())


def in_another_file(data: bytes) -> bytes:
    """The first tensor lies in the file that make_folder puts beside the graph."""
    m = onnx.ModelProto.FromString(data)
    t = m.graph.initializer[0]
    for key, value in (("location", EXTERNAL_FILE), ("offset", "8"), ("length", str(len(t.raw_data)))):
        t.external_data.add(key=key, value=value)
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    return bytes(m.SerializeToString())


def seeds() -> list[bytes]:
    """go-metal's own files, ours, and graphs in the styles of others."""
    golden = [p.read_bytes() for p in sorted((ROOT / "tests" / "golden" / "onnx").glob("*.onnx"))]
    graphs = [g for g in GRAPHS.strip().split("\n\n") if g]
    made = [handmade(g, opset, "pytorch") for g in graphs for opset in OPSETS]
    return [*golden, *exported(), *made, in_another_file(made[0]), in_another_file(made[3])]


SUBJECT = Subject(
    script=Path(__file__),
    target=Target,
    seeds=seeds,
    mutate=mutate,
    smaller=smaller,
    packages=("gometal_mlx.checkpoints", "gometal_mlx.layers"),
    suffix=".onnx",
    memory_limit=6 << 30,  # onnxruntime and MLX reserve more than they use
)

if __name__ == "__main__":
    main(SUBJECT, __doc__, "out/fuzz-onnx")
