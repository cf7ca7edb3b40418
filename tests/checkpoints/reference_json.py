"""What Go's encoding/json prints for a checkpoint, written slowly and plainly: one number, one character at a time.

It shares nothing with gometal_mlx.checkpoints.go_json but the rules (encoding/json, SetIndent("", "  ")), so that the
two can be compared on anything hypothesis thinks of. ``nearest_float32`` does the same for reading numbers.
"""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def character(c: str) -> str:
    if c in SHORT:
        return SHORT[c]
    if c < " " or c in "<>&\u2028\u2029":
        return f"\\u{ord(c):04x}"
    if 0xD800 <= ord(c) <= 0xDFFF:  # not a character: Go sees bytes that are no UTF-8
        return "\\ufffd"
    return c


def string(text: str) -> str:
    return '"' + "".join(character(c) for c in text) + '"'


def number(x: Any) -> str:
    """A numpy.float32 in float32's shortest digits, a Python float in float64's."""
    x = x if isinstance(x, np.float32) else np.float64(x)
    small, large = type(x)(1e-6), type(x)(1e21)
    if x != 0 and (abs(x) < small or abs(x) >= large):
        return np.format_float_scientific(x, unique=True, trim="-", exp_digits=1)
    return np.format_float_positional(x, unique=True, trim="-")


def value(v: Any, indent: str = "") -> str:
    """The text of a value; a dict is printed in its own order (Go's struct), see ``sorted_map`` for Go's maps."""
    inner = indent + "  "
    if v is None:
        return "null"
    if v is True or v is False:
        return "true" if v else "false"
    if isinstance(v, str):
        return string(v)
    if isinstance(v, int):
        return str(v)
    if isinstance(v, dict):
        rows = [f"{inner}{string(k)}: {value(item, inner)}" for k, item in v.items()]
        return "{\n" + ",\n".join(rows) + "\n" + indent + "}" if rows else "{}"
    if isinstance(v, list | tuple | np.ndarray):
        rows = [inner + value(item, inner) for item in v]
        return "[\n" + ",\n".join(rows) + "\n" + indent + "]" if rows else "[]"
    return number(v)


def sorted_map(m: Any) -> Any:
    """A Go map: keys in the order of their UTF-8 bytes, maps inside alike."""
    if not isinstance(m, dict):
        return m
    return {k: sorted_map(m[k]) for k in sorted(m, key=lambda k: k.encode("utf-8", "surrogatepass"))}


def omit_empty(struct: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in struct.items() if k not in names or (len(v) if hasattr(v, "__len__") else v)}


def tensor(t: Any, **last: str) -> dict[str, Any]:
    return {"name": t.name, "shape": list(t.shape), "data": list(t.data.reshape(-1)), **last}


def layer(s: Any) -> dict[str, Any]:
    struct = {
        "type": int(s.type),
        "name": s.name,
        "parameters": sorted_map(dict(s.parameters)),
        "input_shape": list(s.input_shape),
        "output_shape": list(s.output_shape),
        "parameter_shapes": [list(p) for p in s.parameter_shapes],
        "parameter_count": s.parameter_count,
        "running_statistics": sorted_map(dict(s.running_statistics)),
    }
    return omit_empty(
        struct, ("input_shape", "output_shape", "parameter_shapes", "parameter_count", "running_statistics")
    )


def checkpoint(c: Any) -> str:
    """The whole file for a Checkpoint built in memory (no field null, ``extras`` empty)."""
    spec, state = c.model_spec, c.training_state
    tree = {
        "model_spec": {
            "layers": [layer(s) for s in spec.layers],
            "total_parameters": spec.total_parameters,
            "parameter_shapes": [list(p) for p in spec.parameter_shapes],
            "input_shape": list(spec.input_shape),
            "output_shape": list(spec.output_shape),
            "compiled": spec.compiled,
        },
        "weights": [tensor(w, layer=w.layer, type=w.type) for w in c.weights] or None,  # go-metal: a nil slice
        "training_state": {
            "epoch": state.epoch,
            "step": state.step,
            "learning_rate": np.float32(state.learning_rate),
            "best_loss": np.float32(state.best_loss),
            "best_accuracy": np.float32(state.best_accuracy),
            "total_steps": state.total_steps,
        },
    }
    if c.optimizer_state:
        tree["optimizer_state"] = {
            "type": c.optimizer_state.type,
            "parameters": sorted_map(dict(c.optimizer_state.parameters)),
            "state_data": [tensor(t, state_type=t.state_type) for t in c.optimizer_state.state_data],
        }
    m = c.metadata
    metadata = {
        "version": m.version,
        "framework": m.framework,
        "created_at": m.created_at,
        "description": m.description,
        "tags": m.tags,
    }
    tree["metadata"] = omit_empty(metadata, ("description", "tags"))
    return value(tree) + "\n"


def nearest_float32(literal: str) -> np.float32:
    """A decimal literal rounded once to float32, to even on a tie; OverflowError if that is 2**128 or more."""
    if not Decimal(literal):  # such as 0e999999999, whose power of ten no Fraction could hold
        return np.float32(-0.0 if literal.startswith("-") else 0.0)
    exact = Fraction(literal)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(size / step) * step  # round() of a Fraction goes to even
    if rounded >= 2**128:
        raise OverflowError(literal)
    return np.copysign(np.float32(float(rounded)), np.float32(-1 if literal.startswith("-") else 1))
