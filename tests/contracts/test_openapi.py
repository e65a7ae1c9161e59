"""`/openapi.json` against the API as it is served: schemathesis sends what the description allows and what it forbids,
with all its checks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.live_api import KEY, LiveApi, live_api

TOOL = Path(sys.executable).with_name("schemathesis")
# A schema cannot say every rule: fields that must fit each other, files that must be there, ids that were given out.
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "404", "409", "422"]
"""
ROUNDS = {
    "submissions": [
        "--phases", "fuzzing", "--max-examples", "5", "--include-path", "/v1/jobs", "--include-method", "POST",
    ],
    "the rest": ["--phases", "fuzzing,stateful", "--max-examples", "10", "--exclude-path", "/v1/jobs"],
    "edges": ["--phases", "coverage", "--include-method", "GET"],
}  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with live_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.mark.parametrize("which", ROUNDS)
def test_the_description_is_kept(api: LiveApi, tmp_path: Path, which: str) -> None:
    if not TOOL.exists():
        pytest.skip("pip install -e '.[dev]' brings schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [
        str(TOOL), "--config-file", "schemathesis.toml", "run", f"http://{api.host}:{api.port}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--continue-on-failure", "--seed", "1",
        "--request-timeout", "30", "--generation-database", "none", "--no-color", *ROUNDS[which],
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_it_says_what_a_client_needs(api: LiveApi) -> None:
    with api.client as client:
        document = client.get("/openapi.json").json()
    submit = document["paths"]["/v1/jobs"]["post"]
    schemas = document["components"]["schemas"]
    body = submit["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert {"steps", "backbone", "prompts", "rewards", "algorithm"} <= set(schemas[body]["properties"])
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer" and document["security"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            assert {"400", "401", "408", "422", "429", "500", "503"} <= set(answers), path
            for status in ("401", "422", "503"):
                assert list(answers[status]["content"]) == ["application/problem+json"]
    events = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert set(events) == {"text/event-stream", "application/json"}
    assert {"409", "413", "507"} <= set(submit["responses"])
