"""DNSMOS P.835: calibration and windows against numbers by hand, the network against numpy, files that are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accord.config.contract import ModelFacts
from accord.config.onnx_file import Value, inspect_onnx
from accord.config.rewards.sound import DnsmosReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.dnsmos import SCALES, cut, on_scale
from tests.unit.reward_servers import tiny_dnsmos as tiny

PROMPT = Prompt("p", "a man speaks", "a man", "a man speaks")
VIDEO = np.zeros((3, 8, 8, 3), np.uint8)
WINDOW = tiny.WINDOW


def clip(seconds: float, rate: int = 16_000, channels: int = 1) -> Clip:
    rng = np.random.default_rng(int(seconds * 100))
    return Clip(VIDEO, 24.0, (0.1 * rng.standard_normal((channels, int(seconds * rate)))).astype(np.float32), rate)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_checkpoint(folder / "DNSMOS" / "sig_bak_ovr.onnx")
    return folder


@pytest.fixture(scope="module")
def model(home: Path):
    return build(DnsmosReward(path=str(home)))


BY_HAND = {
    False: {"sig": [1.14211065, 2.91200747, 4.01012205], "bak": [1.0814408, 3.24640004, 4.35800824],
            "ovrl": [1.0938272, 2.78345392, 3.931778]},
    True: {"sig": [0.9695993, 3.31621134, 5.14902354], "bak": [1.19737002, 3.1166764, 4.99502182],
           "ovrl": [1.06799499, 3.33138685, 5.25181159]},
}  # fmt: skip
"""The published polynomials at 1, 3 and 5, in exact fractions."""


@pytest.mark.parametrize("personalized", [False, True])
def test_calibration_is_the_published_polynomials(personalized: bool):
    found = np.array([on_scale(np.full(3, raw), SCALES[personalized]) for raw in (1.0, 3.0, 5.0)])
    for place, part in enumerate(("sig", "bak", "ovrl")):
        assert found[:, place] == pytest.approx(BY_HAND[personalized][part], abs=1e-7)


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (WINDOW, [0]), (WINDOW + 5, [0]), (10 * 16_000, [0]), (12 * 16_000, [0, 16_000, 32_000]),
        (5 * 16_000, [0]), (3 * 16_000, [0, 16_000, 32_000]), (1, None),
    ],
)  # fmt: skip
def test_windows_are_one_a_second_and_short_sound_is_doubled(samples: int, starts: list[int] | None):
    windows = cut(np.arange(float(samples)))
    assert {len(window) for window in windows} == {WINDOW}
    for window, start in zip(windows, starts or [0] * len(windows), strict=True):
        assert (window[:100] == (start + np.arange(100)) % samples).all()
        assert window[-1] == (start + WINDOW - 1) % samples


@pytest.mark.parametrize("seconds", [0.4, 9.5, 11.0])
def test_the_ratings_are_those_of_the_network_in_numpy(model, seconds: float):
    heard = clip(seconds)
    raw_W3 = np.array([tiny.rated(window) for window in cut(heard.audio_CS[0].astype(np.float64))])
    coefficients = np.array(SCALES[False])[:, :, None]
    a, b, c = coefficients[:, 0], coefficients[:, 1], coefficients[:, 2]
    wanted = (a * raw_W3.T**2 + b * raw_W3.T + c).mean(axis=1)
    (scores,) = score_groups(model, [PROMPT], [[heard]])
    assert [scores.components[part][0] for part in ("sig", "bak", "ovrl")] == pytest.approx(wanted, abs=1e-5)
    assert scores.values[0] == scores.components["ovrl"][0]
    assert scores.components["windows"][0] == len(raw_W3)


def test_the_personalised_network_has_scales_of_its_own(model, home: Path):
    other = build(DnsmosReward(path=str(home / "DNSMOS" / "sig_bak_ovr.onnx"), personalized=True))
    (plain,), (own,) = (score_groups(one, [PROMPT], [[clip(9.5)]]) for one in (model, other))
    raw = tiny.rated(clip(9.5).audio_CS[0].astype(np.float64)[:WINDOW])[2]
    assert own.values[0] == pytest.approx(np.polyval([-0.00533021, 0.005101, 1.18058466, -0.11236046], raw), abs=1e-5)
    assert own.values != plain.values
    assert other.weights_digest == model.weights_digest and len(model.weights_digest) == 64


def test_company_rate_and_channels_do_not_matter(model):
    eight = [clip(0.5 + place / 4) for place in range(8)]
    alone = tuple(score_groups(model, [PROMPT], [[one]])[0].values[0] for one in eight)
    assert score_groups(model, [PROMPT], [eight])[0].values == alone
    doubled = Clip(VIDEO, 24.0, np.repeat(eight[0].audio_CS, 2, axis=0), 16_000)
    assert score_groups(model, [PROMPT], [[doubled]])[0].values == alone[:1]


def test_silence_gets_the_floor(model):
    silent = Clip(VIDEO, 24.0, np.zeros((1, 32_000), np.float32), 16_000)
    (scores,) = score_groups(model, [PROMPT], [[silent]])
    assert (scores.values, scores.reasons) == ((1.0,), ("silent_audio",))


# ---------------------------------------------------------------- files


def test_what_a_file_takes_and_gives_is_read_as_the_library_reads_it(home: Path):
    file = home / "DNSMOS" / "sig_bak_ovr.onnx"
    onnx.checker.check_model(onnx.load(file))
    found = inspect_onnx(file)
    assert found.inputs == (Value("input_1", 1, (None, WINDOW)),)
    assert found.outputs == (Value("Identity:0", 1, (None, 3)),)


def _nested() -> onnx.ModelProto:
    """A foreign operator in a branch of an If."""
    made = tiny.model()
    inner = helper.make_graph(
        [helper.make_node("Load", [], ["out"], domain="evil.ops")], "b",
        [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    made.graph.node.append(helper.make_node("If", ["one"], ["x"], then_branch=inner, else_branch=inner))
    return made


def _external(inside: bool) -> onnx.ModelProto:
    """Weights of an initializer, or of a Constant, in another file."""
    made = tiny.model()
    tensor = made.graph.initializer[0]
    if inside:
        tensor = numpy_helper.from_array(np.ones(4, np.float32), "hidden")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    if inside:
        made.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))
    return made


def _function() -> onnx.ModelProto:
    """A function of its own, with a weight in another file."""
    made = _external(True)
    hidden, told = made.graph.node.pop(), made.opset_import
    made.functions.append(helper.make_function("ai.onnx.ml", "Load", [], ["x"], [hidden], told))
    return made


def _sparse() -> onnx.ModelProto:
    """A sparse constant, whose parts may lie in other files."""
    made = tiny.model()
    parts = numpy_helper.from_array(np.ones(1, np.float32)), numpy_helper.from_array(np.zeros(1, np.int64))
    made.graph.node.append(helper.make_node("Constant", [], ["x"], sparse_value=helper.make_sparse_tensor(*parts, [3])))
    return made


def _custom() -> onnx.ModelProto:
    made = tiny.model()
    made.graph.node[2].domain = "evil.ops"
    return made


def _two_inputs() -> onnx.ModelProto:
    made = tiny.model()
    made.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return made


def _gives(shape: list[int]) -> onnx.ModelProto:
    made = tiny.model()
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, shape))
    return made


def _not_a_number() -> onnx.ModelProto:
    made = tiny.model()
    made.graph.node[-3].op_type = "Log"  # of what may be below 0
    made.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(3, -5.0, np.float32), "offset"))
    return made


def _unknown_operator() -> onnx.ModelProto:
    made = tiny.model()
    made.graph.node[2].op_type = "Absolutely"
    return made


WHOLE = tiny.model().SerializeToString()
MADE = {
    "custom": _custom, "nested": _nested, "external": lambda: _external(False), "constant": lambda: _external(True),
    "length": lambda: tiny.model((1, 16_000)), "rank": lambda: tiny.model((1, WINDOW, 1)),
    "kind": lambda: tiny.model(kind=TensorProto.INT64), "two": _two_inputs, "five": lambda: _gives([1, 5]),
    "log": _not_a_number, "operator": _unknown_operator, "function": _function, "sparse": _sparse,
}  # fmt: skip


def _bytes(way: str) -> bytes:
    if way in MADE:
        return MADE[way]().SerializeToString()
    if way == "huge":
        return bytes(17 * 2**20)
    return {"torn": WHOLE[:-40], "pickle": pickle.dumps({"a": 1}), "empty": b"", "text": b"<html>404</html>"}[way]


@pytest.mark.parametrize(
    ("way", "why", "early"),
    [
        ("custom", "wants the operator 'Abs' of 'evil.ops'", True), ("nested", "'Load' of 'evil.ops'", True),
        ("external", "keeps 'frame' in another file", True), ("constant", "keeps 'hidden' in another file", True),
        ("length", r"takes input_1 \[1, 16000\]", True), ("rank", r"takes input_1 \[1, 144160, 1\]", True),
        ("kind", "where float32", True), ("two", r"takes input_1 .*, more \[1\]", True),
        ("five", r"gives Identity:0 \[1, 5\]", True), ("torn", "torn, or not an ONNX model", True),
        ("pickle", "torn, or not an ONNX model", True), ("empty", "holds no graph", True),
        ("text", "torn, or not an ONNX model", True), ("log", "must give three numbers", False),
        ("operator", "no model that can be run", False), ("missing", "No such file", True),
        ("huge", "at most 16777216 are read", True), ("function", "brings functions of its own", True),
        ("sparse", "holds sparse weights", True),
    ],
)  # fmt: skip
def test_files_that_will_not_do_are_named(tmp_path: Path, way: str, why: str, early: bool):
    file = tmp_path / "DNSMOS" / "sig_bak_ovr.onnx"
    file.parent.mkdir()
    if way != "missing":
        file.write_bytes(_bytes(way))
    spec = DnsmosReward(path=str(tmp_path))
    with pytest.raises(ModelError, match=rf"sig_bak_ovr\.onnx.*{why}"):
        build(spec)
    assert [field for field, _ in spec.problems(None, ModelFacts())] == (["path"] if early else [])


def test_any_torn_or_flipped_file_is_an_error_with_a_name(tmp_path: Path):
    rng, file = np.random.default_rng(3), tmp_path / "sig_bak_ovr.onnx"
    short = WHOLE[: WHOLE.index(b"dnsmos")]  # nodes and all that is structure
    for _ in range(300):
        broken = bytearray(short[: rng.integers(1, len(short))])
        broken[rng.integers(len(broken))] = rng.integers(256)
        file.write_bytes(bytes(broken))
        with pytest.raises(ModelError, match=r"sig_bak_ovr\.onnx"):
            inspect_onnx(file)
