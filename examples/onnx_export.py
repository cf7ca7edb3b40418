"""The guide's ONNX program: a 784-256-128-64-10 network, exported, and run by onnxruntime without gometal_mlx."""

import numpy as np
import onnxruntime

import gometal_mlx as gm

rng = np.random.default_rng(5)
labels = rng.integers(0, 10, 1280)
x = (rng.standard_normal((10, 784))[labels] + 2 * rng.standard_normal((1280, 784))).astype(np.float32)

builder = gm.ModelBuilder((1, 784))
for size in (256, 128, 64):
    builder.add_dense(size, name=f"fc_{size}").add_relu(f"relu_{size}")
spec = builder.add_dense(10, name="output").compile()
trainer = gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=64, seed=1))
history = trainer.fit((x, labels), epochs=5)
print("loss", " ".join(f"{loss:.4f}" for loss in history["loss"]))

report = trainer.save("mlp.onnx")
print(f"proven at batches {report.batch_sizes}: relative difference {report.relative_difference:.1e}")

session = onnxruntime.InferenceSession("mlp.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["output"], {"input": x[:5]})[0]
print("onnxruntime", logits.argmax(axis=1), "MLX", trainer.predict(x[:5]).argmax(axis=1), "true", labels[:5])
assert np.array_equal(logits.argmax(axis=1), trainer.predict(x[:5]).argmax(axis=1))
