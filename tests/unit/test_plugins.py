"""What is refused of an installed package before anything starts, by package and class."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from accord.config.contract import BackboneSpec, ModelFacts, PartSpec, Problem, RewardSpec
from accord.config.forward import AWMSpec
from accord.config.job import MOST_PROBLEMS, JobSpec
from accord.config.paths import InputPath, NamedPath
from accord.config.plans import planned
from accord.config.preflight import preflight
from accord.errors import InputError, PluginError, SpecError
from accord.plugins import BUILT_IN, Kind, answering, load_impl, misfit, names, origin, registered, resolve, spec_class
from accord.types import Fork, RolloutPlan, Route, StochasticSteps

ROOT = Path(__file__).resolve().parents[2]
SPEC = """
from typing import ClassVar, Literal
from accord.config.contract import AlgorithmSpec, BackboneSpec, RewardSpec
"""
GOOD = """
class Good(AlgorithmSpec):
    impl: ClassVar[str] = "{module}.work:Work"
    name: Literal["{name}"] = "{name}"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes a package with one entry point, as an installer leaves it. Names differ, since modules stay imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(module: str, entry: str, spec: str, work: str = "class Work: ...\n") -> Path:
        package, info = tmp_path / module, tmp_path / f"{module}-1.0.dist-info"
        package.mkdir()
        info.mkdir()
        (package / "__init__.py").touch()
        (package / "spec.py").write_text(spec)
        (package / "work.py").write_text(work)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pip-{module}\nVersion: 1.0\n")
        kind, _, rest = entry.partition(":")
        (info / "entry_points.txt").write_text(f"[accord.{kind}]\n{rest}\n")
        registered.cache_clear()
        return tmp_path

    yield made
    registered.cache_clear()


def good(module: str, name: str) -> str:
    return SPEC + GOOD.format(module=module, name=name)


def test_what_keeps_the_contract_is_there_by_name(install: Callable[..., Path]) -> None:
    install("plug_good", "algorithms:plug_good = plug_good.spec:Good", good("plug_good", "plug_good"))
    assert "plug_good" in names("algorithms")
    spec = spec_class("algorithms", "plug_good")()
    assert load_impl(spec).__name__ == "Work"
    assert origin(spec) == "plug-in package pip-plug_good, plug_good.spec:Good"


@pytest.mark.parametrize(
    ("module", "entry", "spec", "work", "told"),
    [
        ("plug_a", "algorithms:awm = plug_a.spec:Good", good("plug_a", "awm"), "", "'awm' in algorithms is that of"),
        ("plug_b", "rewards:b = plug_b.spec:Good", good("plug_b", "b"), "", "does not inherit accord.config."),
        ("plug_c", "algorithms:c = plug_c.spec:Good", good("plug_c", "other"), "", 'name must be Literal["c"] = "c"'),
        ("plug_d", "algorithms:d = plug_d.spec:None_", good("plug_d", "d"), "", "cannot be imported (AttributeError"),
        ("plug_e", "algorithms:e = plug_e.spec:Literal", good("plug_e", "e"), "", "is no class"),
        ("plug_f", "algorithms:f = plug_f.spec:Good", good("gone", "f"), "", "impl = 'gone.work:Work': gone.work can"),
        ("plug_g", "algorithms:g = plug_g.spec:Good", good("plug_g", "g"), "x = 1\n", "plug_g.work defines no Work"),
        ("plug_h", "algorithms:h = plug_h.spec:Good", good("plug_h", "h"), "def (", "SyntaxError"),
        ("plug_i", "algorithms:i = plug_i.spec:Good", "import no_such_thing\n", "", "No module named 'no_such_thing'"),
        ("plug_n", "rewards:a-n = plug_n.spec:Dashed", SPEC + "class Dashed(RewardSpec): ...", None, "must be letters"),
        ("plug_j", "algorithms:j = plug_j.spec:Good", good("plug_j", "j").replace(".work:Work", ""), "", "module:Name"),
        (
            "plug_k", "backbones:k = plug_k.spec:Video",
            SPEC + 'class Video(BackboneSpec):\n    impl: ClassVar[str] = "plug_k.work:Work"\n'
            '    inspect: ClassVar[str] = "plug_k.work:look"\n    name: Literal["k"] = "k"\n', None,
            "inspect = 'plug_k.work:look': plug_k.work defines no look",
        ),
        (
            "plug_l", "rewards:l = plug_l.spec:Nameless",
            SPEC + 'class Nameless(RewardSpec):\n    impl: ClassVar[str] = "plug_l.work:Work"\n', None, "name must be",
        ),
        (
            "plug_r", "rewards:r = plug_r.spec:Several",
            SPEC + 'class Several(RewardSpec):\n    labelled: ClassVar[str] = "other"\n    name: str\n', None,
            'labelled must be "r", as the entry point calls it',
        ),
        ("plug_o", "rewards:o = plug_o.spec:Good", "import sys\nsys.exit(3)\n", "", "imported (SystemExit: 3)"),
        (
            "plug_p", "rewards:p = plug_p.spec:Number",
            SPEC + 'class Number(RewardSpec):\n    impl: ClassVar = 5\n    name: Literal["p"] = "p"', None,
            "impl = 5: must be written module:Name",
        ),
        (
            "plug_q", "rewards:q = plug_q.spec:Falls",
            SPEC + 'class Falls(RewardSpec):\n    name: Literal["q"] = "q"\n    code = classmethod(lambda _: [1 / 0])',
            None, "code raised ZeroDivisionError: division by zero",
        ),
        (
            "plug_m", "rewards:m = plug_m.spec:Hollow",
            SPEC + 'class Hollow(RewardSpec):\n    name: Literal["m"] = "m"\n', None, "impl = '': must be written",
        ),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused_by_package_and_class(
    install: Callable[..., Path], module: str, entry: str, spec: str, work: str | None, told: str
) -> None:
    install(module, entry, spec, work or "class Work: ...\n")
    kind: Any = entry.partition(":")[0]
    with pytest.raises(PluginError) as caught:
        names(kind)
    assert told in str(caught.value) and f"pip-{module}, {module}.spec:" in str(caught.value)


def test_two_packages_of_one_name_are_refused(install: Callable[..., Path]) -> None:
    install("plug_one", "algorithms:same = plug_one.spec:Good", good("plug_one", "same"))
    install("plug_two", "algorithms:same = plug_two.spec:Good", good("plug_two", "same"))
    with pytest.raises(PluginError, match=r"plug_(one|two).*the name 'same' in algorithms is that of plug_(one|two)"):
        names("algorithms")


COMMANDS = (["api"], ["runner"], ["validate", "x.toml"])


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_no_command_starts_with_a_broken_plug_in(install: Callable[..., Path], command: list[str]) -> None:
    path = install("plug_bad", "algorithms:bad = plug_bad.spec:Good", good("nowhere", "bad"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    ran = subprocess.run(
        [sys.executable, "-m", "services.cli.main", *command], env=environment, capture_output=True, text=True,
        timeout=60, cwd=path,
    )  # fmt: skip
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "pip-plug_bad, plug_bad.spec:Good: impl = 'nowhere.work:Work'" in ran.stderr


CHECKED = """
class Odd(RewardSpec):
    impl: ClassVar[str] = "{module}.work:Work"
    name: Literal["odd"] = "odd"
    route: Literal["video"] = "video"
    fault: str = "none"

    def problems(self, job, facts):
        if self.fault == "raise":
            raise KeyError("boom")
        if self.fault == "late" and facts is not None:
            raise RuntimeError("late")
        if self.fault == "print":
            print("hello")
        if self.fault == "field":
            yield "no/such", "is odd"
        if self.fault == "several":
            yield "fault", "is odd"
            yield "", "is odd altogether"
            yield "/sampling/num_steps", "is odd too"
"""

POST = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from accord.config.settings import Settings
from services.api.app import create_app
from tests.memory_store import InMemoryJobStore

root = Path(sys.argv[1])
settings = Settings(data_dir=root / "data", runs_dir=root / "runs", input_roots=(root,), api_key="k" * 32)
import json
with TestClient(create_app(settings, InMemoryJobStore()), raise_server_exceptions=False) as client:
    client.headers["Authorization"] = "Bearer " + "k" * 32
    for fault in ("print", "raise", "late", "field", "several"):
        spec = json.loads((root / "spec.json").read_text())
        spec["rewards"].append({"name": "odd", "fault": fault})
        answer = client.post("/v1/jobs", json=spec)
        print(answer.status_code, answer.text)
"""


def test_a_hook_that_misbehaves_is_told_to_who_submits_and_never_a_500(
    install: Callable[..., Path], tmp_path: Path
) -> None:
    path = install("plug_odd", "rewards:odd = plug_odd.spec:Odd", SPEC + CHECKED.format(module="plug_odd"))
    for name in ("train", "held_out"):
        line = {"id": name, "prompt_av": name, "prompt_v": "a ball", "prompt_a": "a beep"}
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    (tmp_path / "spec.json").write_text(job().model_dump_json().replace("/p/", f"{tmp_path}/"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(POST), str(tmp_path)], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    greeting, *answers = ran.stdout.splitlines()
    assert greeting == "hello", "of the process that parses; what is printed where files are looked at is no answer"
    printed, raised, late, field, several = answers
    assert printed.startswith("202")
    for answer in (raised, late, field):
        assert answer.startswith("422") and '"code": "plugin"' in answer and "pip-plug_odd, plug_odd.spec:Odd" in answer
    assert "problems raised KeyError" in raised and "problems raised RuntimeError: late" in late
    assert "problems names /rewards/1/no/such, which is no field of the job" in field
    told = {error["pointer"]: error["detail"] for error in json.loads(several[4:])["errors"]}
    assert told == {
        "/rewards/1/fault": "is odd", "/rewards/1": "is odd altogether", "/sampling/num_steps": "is odd too"
    }  # fmt: skip


def job(**parts: Any) -> JobSpec:
    """A valid job; `parts` are put into it as they are."""
    spec = JobSpec.model_validate_json(
        json.dumps(
            {
                "steps": 1,
                "backbone": {"name": "ltx2"},
                "prompts": {"train": "/p/train", "held_out": "/p/held_out"},
                "guards": {"allow_prompt_blind": True},
                "rewards": [{"name": "sync"}],
                "algorithm": {"name": "awm"},
            }
        )
    )
    return spec.model_copy(update=parts)


class _Part(PartSpec):
    size: int = 1

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        yield "size", f"{self.size} of {job.steps}"
        yield "/seed", "no seed"


class _Algorithm(AWMSpec):
    part: _Part = _Part()


def test_the_checks_of_parts_run_wherever_they_stand() -> None:
    assert job(algorithm=_Algorithm()).problems(None) == [("/algorithm/part/size", "1 of 1"), ("/seed", "no seed")]


class _Sharded(RewardSpec):
    name: Literal["sharded"] = "sharded"
    route: Route = "video"
    index: str = "/p/index.json"
    place: tuple[str, ...] = ("index",)

    def files(self) -> Iterable[NamedPath]:
        yield from super().files()
        yield NamedPath(self.place, "/p/shard-1", InputPath())


def test_a_plug_in_may_name_more_files_at_a_field_it_has() -> None:
    named = [(one.pointer, one.path) for one in job(rewards=(_Sharded(),)).files()]
    assert named == [
        ("/backbone/path", "builtin:tiny-ltx2"), ("/prompts/train", "/p/train"), ("/prompts/held_out", "/p/held_out"),
        ("/rewards/0/index", "/p/shard-1"),
    ][1:]  # fmt: skip
    with pytest.raises(PluginError, match="files names /rewards/0/else, which is no field"):
        job(rewards=(_Sharded(place=("else",)),)).files()


class _Reads(RewardSpec):
    name: Literal["reads"] = "reads"
    route: Route = "video"
    table: Annotated[str, InputPath()] = ""
    message: str = "/x: not found"

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        raise InputError(self.message)


def test_a_file_that_cannot_be_opened_is_told_once() -> None:
    reads = _Reads.model_construct(name="reads", route="both", table="/x", message="/x: No such file or directory")
    with pytest.raises(SpecError) as caught:
        preflight(job(rewards=(reads,)))
    assert [where for where, _ in caught.value.problems if "rewards" in where] == ["/rewards/0/table"]


def test_a_file_that_a_check_cannot_open_is_the_jobs_problem() -> None:
    assert job(rewards=(_Reads(route="both"),)).problems(ModelFacts()) == [("/rewards/0", "/x: not found")]


def test_errors_of_accord_pass_a_hook_as_they_are() -> None:
    with pytest.raises(InputError), answering(_Reads(), "files"):
        raise InputError("x")


@pytest.mark.parametrize("kind", BUILT_IN)
def test_what_is_built_in_keeps_the_contract(kind: Kind) -> None:
    for name, path in BUILT_IN[kind].items():
        spec = spec_class(kind, name)
        assert spec.labelled == name or spec.model_fields["name"].default == name
        assert f"{spec.__module__}:{spec.__qualname__}" == path
        assert misfit(spec, name) == ""


class _Talks(RewardSpec):
    name: Literal["talks"] = "talks"
    route: Route = "both"
    said: tuple[Any, ...] = ()
    table: dict[str, Annotated[str, InputPath()]] = Field(default_factory=dict)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        return self.said


def test_what_is_no_pair_is_the_plug_ins_fault() -> None:
    with pytest.raises(PluginError, match=r"test_plugins:_Talks: problems raised ValueError"):
        job(rewards=(_Talks(said=("path",)),)).problems(None)


def test_problems_without_an_end_are_read_to_a_bound() -> None:
    found = job(rewards=(_Talks.model_construct(name="talks", said=repeat(("said", "wrong"))),)).problems(None)
    assert len(found) == MOST_PROBLEMS


@pytest.mark.parametrize(
    "said",
    [None, "/p/x", NamedPath(("said",), 5, InputPath()), NamedPath(("said",), "/p/x", None)],  # type: ignore[arg-type]
)
def test_what_is_no_named_path_is_the_plug_ins_fault(said: Any) -> None:
    class Names(_Talks):
        def files(self) -> Iterable[NamedPath]:
            return [said]

    with pytest.raises(PluginError, match=r"Names: files gave .*; give NamedPath\(place, path, InputPath\(\)\)"):
        job(rewards=(Names(),)).files()


@pytest.mark.parametrize(
    "where", ["/rewards/-1", "/nowhere", "/rewards/1", "/rewards/x", "/steps/0", "said/3", "/rewards/0/name/x"]
)
def test_every_pointer_that_leads_nowhere_is_the_plug_ins_fault(where: str) -> None:
    with pytest.raises(PluginError, match="which is no field of the job"):
        job(rewards=(_Talks(said=((where, "wrong"),)),)).problems(None)


def test_a_path_in_a_table_is_found_whatever_its_key() -> None:
    named = job(rewards=(_Talks(table={"a/b~c": "/p/x"}),)).files()
    assert ("/rewards/0/table/a~1b~0c", "/p/x") in [(one.pointer, one.path) for one in named]


class _Silent(BackboneSpec):
    impl: ClassVar[str] = "x:Y"
    name: Literal["silent"] = "silent"

    def facts(self) -> ModelFacts | None:
        raise KeyError("width")


def test_an_inspection_that_falls_over_is_told_at_the_path_with_its_package() -> None:
    silent = _Silent.model_construct(name="silent", path="builtin:x")
    with pytest.raises(SpecError, match=r"/backbone/path: .*test_plugins:_Silent: facts raised KeyError"):
        preflight(job(backbone=silent))


class _Guessed(BackboneSpec):
    name: Literal["guessed"] = "guessed"

    def facts(self) -> ModelFacts | None:
        return {"depth": 2}  # type: ignore[return-value]


def test_facts_of_another_type_are_the_backbones_fault() -> None:
    guessed = _Guessed.model_construct(name="guessed", path="builtin:x")
    with pytest.raises(
        SpecError, match=r"/backbone/path: .*test_plugins:_Guessed: facts gave \{'depth': 2\}; give Mod"
    ):
        preflight(job(backbone=guessed))


PLANS = """
class Plans(AlgorithmSpec):
    impl: ClassVar[str] = "{module}.work:Work"
    name: Literal["plans"] = "plans"

    def plan(self, job, step):
        return super().plan(job, step) if step == {whole} else None
"""


class _Plans(AWMSpec):
    changes: dict[str, Any] = Field(default_factory=dict)

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        if step == 2:
            raise KeyError("boom")
        return replace(super().plan(job, step), **self.changes) if step == 1 else None  # type: ignore[return-value]


def _drawn(*steps: int, eta: float = 0.5) -> StochasticSteps:
    return StochasticSteps("flow", eta, steps)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"role": "teacher"}, "/role: Input should be 'policy', 'old' or 'ref' (got 'teacher')"),
        ({"num_steps": "8"}, "/num_steps: Input should be a valid integer (got '8')"),
        ({"num_steps": 0}, "num_steps is 0; use 1 or more"),
        ({"initial_noise": "sharde"}, "/initial_noise: Input should be 'independent' or 'shared'"),
        ({"stochastic": _drawn(99)}, "stochastic.steps is (99,); name at least one, ascending, from 0 to 7"),
        ({"stochastic": _drawn(-1)}, "stochastic.steps is (-1,)"),
        ({"stochastic": _drawn(2, 1)}, "stochastic.steps is (2, 1)"),
        ({"stochastic": _drawn()}, "stochastic.steps is ()"),
        ({"stochastic": _drawn(1, eta=0.0)}, "stochastic.eta is 0"),
        ({"stochastic": _drawn(1), "forks": (Fork(1, 1, 1),)}, "forks: sample 1 cannot fork from 1"),
        ({"stochastic": _drawn(1), "forks": (Fork(9, 0, 1),)}, "forks: sample 9 cannot fork from 0"),
    ],
)
def test_a_plan_that_cannot_be_sampled_is_refused_with_its_field(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PluginError) as caught:
        planned(job(algorithm=_Plans(changes=changes)), 1)
    assert "test_plugins:_Plans: plan of step 1: " in str(caught.value) and told in str(caught.value)


def test_what_plan_raises_or_gives_instead_of_one_is_the_plug_ins_fault() -> None:
    plans = job(algorithm=_Plans())
    assert planned(plans, 1) == plans.sampling.plan("old")
    with pytest.raises(PluginError, match=r"_Plans: plan raised KeyError: 'boom'"):
        planned(plans, 2)
    with pytest.raises(PluginError, match=r"_Plans: plan of step 3: it is None; give a RolloutPlan"):
        planned(plans, 3)


@pytest.mark.parametrize(("whole", "torn"), [(1, 3), (3, 1)])
def test_the_plans_of_the_first_and_the_last_step_are_looked_at_when_a_job_validates(
    install: Callable[..., Path], whole: int, torn: int
) -> None:
    module = f"plug_plan_{whole}"
    path = install(module, f"algorithms:plans = {module}.spec:Plans", SPEC + PLANS.format(module=module, whole=whole))
    tree = json.loads(job().model_dump_json()) | {"steps": 3, "algorithm": {"name": "plans"}}
    code = "import sys; from accord.config.job import JobSpec; JobSpec.parse(sys.argv[1])"
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(tree)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])},
    )  # fmt: skip
    assert (
        f"PluginError: plug-in package pip-{module}, {module}.spec:Plans: plan of step {torn}: it is None" in ran.stderr
    )


def test_techniques_that_a_model_cannot_have_are_refused_by_what_it_makes() -> None:
    spec = job().algorithm.model_copy(update={"surgery": resolve("accord.config.algorithm_parts:SurgerySpec")()})
    silent = _Silent.model_construct(name="silent")
    found = job(backbone=silent, algorithm=spec).problems(None)
    assert ("/algorithm/surgery/enabled", found[0][1]) == found[0] and "no audio-to-video attention" in found[0][1]
