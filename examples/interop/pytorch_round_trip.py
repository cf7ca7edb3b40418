"""PyTorch to gometal_mlx and back: trained there, trained on here, exported again. Needs `pip install torch`."""

import os
import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn

os.environ["MLX_ENABLE_TF32"] = "0"  # all digits of a product, on the newest GPUs, too

import gometal_mlx as gm
from gometal_mlx.data import load_digits

train, test = load_digits()
torch.manual_seed(0)
theirs = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
)  # fmt: skip
optimizer = torch.optim.Adam(theirs.parameters(), 1e-3)
x, y = torch.from_numpy(train.x), torch.from_numpy(train.y).long()
for _ in range(30):
    optimizer.zero_grad()
    nn.functional.cross_entropy(theirs(x), y).backward()
    optimizer.step()
theirs.eval()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the exporter tells of its own future
    torch.onnx.export(
        theirs, (x[:2],), "torch.onnx", dynamo=False, dynamic_axes={"input": {0: "batch"}}, input_names=["input"]
    )

checkpoint = gm.load("torch.onnx")  # compared with onnxruntime before it returns
print(checkpoint.model_spec)
with torch.no_grad():
    expected = theirs(torch.from_numpy(test.x)).softmax(1).numpy()
ours = gm.Predictor(checkpoint).predict(test.x)
print(f"largest difference to PyTorch {np.abs(ours - expected).max():.1e}")
np.testing.assert_allclose(ours, expected, atol=1e-5)

trainer = gm.ModelTrainer(gm.Model.from_checkpoint(checkpoint), gm.TrainerConfig(seed=0))
before = trainer.evaluate((test.x, test.y))["accuracy"]
trainer.fit((train.x, train.y), epochs=4)
after = trainer.evaluate((test.x, test.y))["accuracy"]
print(f"accuracy {before:.2%} from PyTorch, {after:.2%} trained on in MLX")
trainer.save("again.onnx")
session = onnxruntime.InferenceSession("again.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {"input": test.x})[0]
assert np.array_equal(logits.argmax(axis=1), trainer.predict(test.x).argmax(axis=1))
