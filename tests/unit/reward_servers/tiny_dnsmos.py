"""A tiny DNSMOS P.835: a graph with the published input and output, random weights, eight features of 10 ms frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WINDOW, FRAME, FEATURES = 144_160, 160, 8


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Its three matrices."""
    rng = np.random.default_rng(seed)
    shapes = {"frame": (FRAME, FEATURES), "head": (FEATURES, 3), "offset": (3,)}
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def rated(window_S: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same in numpy, float64: 1 + 4 sigmoid of a mix of mean magnitudes [3]."""
    w = {name: matrix.astype(np.float64) for name, matrix in weights(seed).items()}
    heard = np.abs(window_S.reshape(-1, FRAME) @ w["frame"]).mean(axis=0)
    return 1.0 + 4.0 / (1.0 + np.exp(-(heard @ w["head"] + w["offset"])))


def model(shape: tuple[int | str, ...] = ("batch", WINDOW), kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The graph; `shape` and `kind` are those of its input."""
    nodes = [
        helper.make_node("Reshape", ["input_1", "frames"], ["cut"]),
        helper.make_node("MatMul", ["cut", "frame"], ["seen"]),
        helper.make_node("Abs", ["seen"], ["size"]),
        helper.make_node("ReduceMean", ["size", "along"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "head", "offset"], ["mixed"]),
        helper.make_node("Sigmoid", ["mixed"], ["share"]),
        helper.make_node("Mul", ["share", "four"], ["wide"]),
        helper.make_node("Add", ["wide", "one"], ["Identity:0"]),
    ]
    constants: Mapping[str, np.ndarray] = weights() | {
        "frames": np.array([1, -1, FRAME]), "along": np.array([1]), "four": np.float32(4.0), "one": np.float32(1.0),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "dnsmos",
        [helper.make_tensor_value_info("input_1", kind, list(shape))],
        [helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write_checkpoint(file: Path, made: onnx.ModelProto | None = None) -> None:
    """`sig_bak_ovr.onnx`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((made or model()).SerializeToString())
