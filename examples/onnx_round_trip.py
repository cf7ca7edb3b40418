"""From go-metal's JSON through ONNX and back: what ONNX carries, what the graph decides, what stays behind."""

import os

import numpy as np
import onnx

os.environ["MLX_ENABLE_TF32"] = "0"  # all digits of a product, on the newest GPUs, too

import gometal_mlx as gm
from gometal_mlx.data import load_digits

train, test = load_digits()
builder = gm.ModelBuilder((32, 1, 8, 8)).add_conv2d(8, 3, padding=1, name="conv").add_batch_norm(name="bn")
spec = builder.add_relu("relu").add_dropout(0.2, "drop").add_dense(10, name="output").compile()
trainer = gm.ModelTrainer(spec, gm.TrainerConfig(seed=0))
trainer.fit((train.x, train.y), epochs=4)
trainer.save("digits.json")

gm.save(gm.load("digits.json"), "digits.onnx", softmax=True)
print("nodes  ", " ".join(n.op_type for n in onnx.load("digits.onnx").graph.node))
back = gm.load("digits.onnx")  # onnxruntime runs the file beside the imported model before this returns
print("layers ", " ".join(s.type_name for s in back.model_spec.layers))
assert back.training_state == gm.load("digits.json").training_state
probabilities = gm.Predictor(back).predict(test.x)
np.testing.assert_allclose(probabilities, trainer.predict(test.x), atol=1e-6)
print(f"accuracy {np.mean(probabilities.argmax(axis=1) == test.y):.2%} of {len(test)} digits")

# another tool edits the graph: the graph then decides, and the notes say so
proto = onnx.load("digits.onnx")
del proto.metadata_props[:]
proto.producer_name = "another tool"
onnx.save(proto, "edited.onnx")
edited = gm.load("edited.onnx")
print("edited ", " ".join(s.type_name for s in edited.model_spec.layers), "-", edited.metadata.description)
for a, b in zip(edited.weights, back.weights, strict=True):
    assert np.array_equal(a.data, b.data)

fresh = gm.ModelTrainer(
    gm.Model.from_checkpoint(edited), gm.TrainerConfig(seed=1, loss_function="CategoricalCrossEntropy")
)
print("trained on, loss", fresh.fit((train.x, train.y), epochs=1)["loss"][-1])
