"""The tiny model on real ranks: engines agree, and a run that was cut and resumed ends in the same bits."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import accord

SCRIPT = Path(__file__).with_name("learner_job.py")
TINY = Path(accord.__file__).parent / "world" / "pretrained" / "tiny-ltx2"
LAGGED = {
    "policy_lag": 1, "algorithm": {"name": "omninft", "loss": {"reference_penalty": 1.0}},
    "guards": {
        "reference_reset": {"every": 2}, "diversity": {}, "direction_correction": {"features": ["luma", "loudness_db"]},
    },
}  # fmt: skip
"""One version behind, held to a reference that follows after step 2, with credit that depends on the lines before."""
CLIPPED = {"max_grad_norm": 0.2, "learning_rate": 3e-4, "micro_batch": 4}


def launch(directory: Path, ranks: int, legs: list[dict], timeout: float = 900) -> dict[str, dict]:
    """Run the legs on `ranks` processes and return their results by name."""
    legs = [{"ranks": ranks, "model": str(directory / "model"), **CLIPPED, **leg} for leg in legs]
    if not (directory / "model").exists():
        shutil.copytree(TINY, directory / "model")
    legs_file = directory / f"legs-{legs[0]['name']}.json"
    legs_file.write_text(json.dumps(legs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if ranks > 1 or legs[0]["engine"] == "deepspeed":
            env |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        command = [sys.executable, str(SCRIPT), str(directory), str(legs_file)]
        log = (directory / f"rank{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, (directory / "rank0.log").read_text()[-3000:]
    return {leg["name"]: json.loads((directory / f"{leg['name']}.json").read_text()) for leg in legs}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("learner")


@pytest.fixture(scope="module")
def plain(directory):
    """One process, plain torch: the yardstick, and what a cut does to it."""
    return launch(
        directory,
        1,
        [
            {"name": "torch", "engine": "torch"},
            {"name": "torch-cut", "engine": "torch", "folder": "resumed", "stop_after": 2},
            {"name": "torch-resumed", "engine": "torch", "folder": "resumed"},
            {"name": "torch-lagged", "engine": "torch", **LAGGED},
            {"name": "torch-lagged-cut", "engine": "torch", **LAGGED, "folder": "lagged", "stop_after": 2},
            {"name": "torch-lagged-resumed", "engine": "torch", **LAGGED, "folder": "lagged"},
            {"name": "torch-micro-1", "engine": "torch", "micro_batch": 1},
            {"name": "torch-checkpointed", "engine": "torch", "gradient_checkpointing": True},
        ],
    )


@pytest.fixture(scope="module")
def zero(directory):
    """Two ranks, ZeRO 0, 1, 2, ZeRO-2 with a lag, and a cut at ZeRO-2."""
    legs = [{"name": f"zero{stage}", "engine": "deepspeed", "zero_stage": stage} for stage in (0, 1, 2)]
    legs.append({"name": "zero2-lagged", "engine": "deepspeed", "zero_stage": 2, **LAGGED})
    cut = {"engine": "deepspeed", "zero_stage": 2, "folder": "zero-resumed"}
    return launch(
        directory, 2, [*legs, {"name": "zero2-cut", "stop_after": 2, **cut}, {"name": "zero2-resumed", **cut}]
    )


def adapters(directory: Path, name: str) -> np.ndarray:
    with np.load(directory / f"{name}.npz") as arrays:
        return np.concatenate([arrays[key].ravel() for key in sorted(arrays.files)])


def steps(outcome: dict) -> list[dict]:
    return [event for event in outcome["events"] if event["type"] == "step"]


def gradient_norms(event: dict) -> dict[str, float]:
    """By block and branch, and what reaches the sound through each edge."""
    return {name: value for name, value in event["metrics"].items() if name.startswith("gradient/")}


def assert_same(directory: Path, left: dict, right: dict, names: tuple[str, str]) -> None:
    """Adapters to 1e-5. Adam forgives a constant factor, so losses and gradient norms are compared as well."""
    one, other = (adapters(directory, name) for name in names)
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    for a, b in zip(steps(left), steps(right), strict=True):
        assert b["metrics"]["grad_norm"] == pytest.approx(a["metrics"]["grad_norm"], rel=1e-4)
        assert b["metrics"]["loss/video"] == pytest.approx(a["metrics"]["loss/video"], rel=1e-5)
        assert b["metrics"]["loss/audio"] == pytest.approx(a["metrics"]["loss/audio"], rel=1e-5)
        one_norms, other_norms = gradient_norms(a), gradient_norms(b)
        assert len(one_norms) == 12 and other_norms == pytest.approx(one_norms, rel=1e-4, abs=1e-9)
        whole = sum(value**2 for name, value in other_norms.items() if "from" not in name) ** 0.5
        assert whole == pytest.approx(b["metrics"]["grad_norm"], rel=1e-5)


def test_gradient_clipping_is_at_work(plain):
    norms = [event["metrics"]["grad_norm"] for event in steps(plain["torch"])]
    assert max(norms) > CLIPPED["max_grad_norm"]


@pytest.mark.parametrize("name", ["torch-resumed", "torch-lagged-resumed"])
def test_resumed_run_has_the_same_bits(plain, directory, name):
    straight = plain[name.removesuffix("-resumed")]
    assert plain[name]["digest"] == straight["digest"]
    assert plain[name]["result"] == straight["result"]
    assert plain[name.replace("resumed", "cut")]["digest"] != straight["digest"]
    folder = directory / (
        name.removesuffix("-resumed").removeprefix("torch-") if name != "torch-resumed" else "resumed"
    )
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3]


def test_resumed_run_publishes_the_versions_it_still_needs(plain):
    assert plain["torch-resumed"]["published"] == [2, 3]
    assert plain["torch-lagged-resumed"]["published"] == [1, 2, 3]


@pytest.mark.parametrize("name", ["torch-lagged", "zero2-lagged", "torch-lagged-resumed"])
def test_a_reference_that_was_reset_is_the_policy_of_then(plain, zero, name):
    """After step 2 it is what the policy then is, which step 3 starts from: at no distance from it."""
    metrics = [event["metrics"] for event in steps((plain | zero)[name])]
    resets = [float(event["reference/reset"]) for event in metrics]
    distances = [max(event[f"loss/reference/{modality}"] for modality in ("video", "audio")) for event in metrics]
    assert resets == ([0.0] if "resumed" in name else [0.0, 1.0, 0.0])
    assert distances[-1] == 0.0 and ("resumed" in name or distances[1] > 0)
    assert metrics[-1]["corrected/video"] != 0 and metrics[-1]["diversity/audio/distance"] > 0


@pytest.mark.parametrize("name", ["torch-micro-1", "torch-checkpointed"])
def test_memory_settings_change_rounding_only(plain, directory, name):
    assert_same(directory, plain["torch"], plain[name], ("torch", name))


@pytest.mark.parametrize(
    "names",
    [("torch", f"zero{stage}") for stage in (0, 1, 2)] + [("torch-lagged", "zero2-lagged")],
)
def test_zero_on_two_ranks_equals_one_plain_process(plain, zero, directory, names):
    assert_same(directory, plain[names[0]], zero[names[1]], names)


def test_zero_2_resumed_has_the_same_bits(zero):
    assert zero["zero2-resumed"]["digest"] == zero["zero2"]["digest"]
    assert zero["zero2-resumed"]["result"] == zero["zero2"]["result"]
    assert zero["zero2-resumed"]["published"] == [2, 3]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_pieces_are_where_deepspeed_cuts_the_flat_gradient(ranks):
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from learner.zero import pieces

    parameters = [torch.nn.Parameter(torch.empty(size)) for size in (5, 7, 3, 9, 1, 4)]
    owners = [number for number, parameter in enumerate(parameters) for _ in range(parameter.numel())]
    room = -(-len(owners) // ranks)
    for rank in range(ranks):
        inside, _, skipped = DeepSpeedZeroOptimizer.get_partition_info(None, parameters, room, rank)
        found = [
            next(number for number, known in enumerate(parameters) if known is parameter)
            for parameter, size in pieces(inside, skipped, room)
            for _ in range(size)
        ]
        assert found == owners[rank * room : (rank + 1) * room]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_zero_3_equals_one_plain_process_and_resumes(plain, directory):
    both = {"engine": "deepspeed", "zero_stage": 3}
    zero3 = launch(
        directory,
        2,
        [
            {"name": "zero3", **both},
            {"name": "zero3-lagged", **LAGGED, **both},
            {"name": "zero3-cut", "folder": "zero3-resumed", "stop_after": 2, **both},
            {"name": "zero3-resumed", "folder": "zero3-resumed", **both},
        ],
        timeout=1700,
    )
    assert_same(directory, plain["torch"], zero3["zero3"], ("torch", "zero3"))
    assert_same(directory, plain["torch-lagged"], zero3["zero3-lagged"], ("torch-lagged", "zero3-lagged"))
    assert zero3["zero3-resumed"]["digest"] == zero3["zero3"]["digest"]
