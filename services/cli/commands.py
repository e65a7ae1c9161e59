"""The commands of `accord`. Importing them is light: Ray and torch load only in the commands that need them.

Exit statuses: 0 done, 1 the job failed, 2 wrong usage or input, 3 nothing answers.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accord import logs
from accord.config.settings import Settings, variable_of
from accord.errors import (
    AccordError,
    CheckpointError,
    DeadlineExceeded,
    ServiceError,
    SpecError,
    StoreUnavailable,
    Unreachable,
    UnsafeStore,
    UserError,
)
from services.cli.client import ApiClient
from services.cli.job_file import read_job, shown
from services.cli.watch import JobPicture
from services.cli.watch import watch as show
from services.connections import base_url, ray_address
from services.signals import Signals, interrupt_again

FAILED, USAGE, UNREACHABLE = 1, 2, 3
_AWAY = (Unreachable, StoreUnavailable, DeadlineExceeded)
_WRONG = (UserError, ServiceError, CheckpointError, UnsafeStore)

app = typer.Typer(
    name="accord", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="RL post-training for joint audio-video diffusion models.\n\n"
    "On one machine: `accord up` in one terminal; in another `accord submit examples/tiny_omninft.toml` and "
    "`accord watch JOB`. `accord demo` does all of it and stops again.",
    epilog="Exit status: 0 done, 1 the job failed, 2 wrong input, 3 nothing answers. Settings: environment variables "
    "`ACCORD_*`, `REDIS_URL`, `RAY_ADDRESS`.",
)  # fmt: skip
rewards_app = typer.Typer(no_args_is_help=True, help="Rewards: try one here; see and scale their servers.")
app.add_typer(rewards_app, name="rewards")

out, err = Console(), Console(stderr=True)

Port = Annotated[int | None, typer.Option(help="Port of the API (also ACCORD_PORT).", min=1, max=65535)]
JobId = Annotated[str, typer.Argument(help="Job id, as `accord submit` printed it.", show_default=False)]
JobFile = Annotated[Path, typer.Argument(help="A job file (TOML).", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", help="Change a field: `--set steps=5`, `--set rewards.0.weight=2`. Repeatable.")
]
RewardName = Annotated[str, typer.Argument(help="Reward, as a job names it.", show_default=False)]
RewardFields = Annotated[
    list[str], typer.Option("--set", help="Change a field of the reward: `--set path=DIR`. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong on purpose into one line and an exit status."""
    interrupt_again()
    try:
        yield
    except AccordError as error:
        said = [f"{at or '/'}: {why}" for at, why in error.problems] if isinstance(error, SpecError) else [str(error)]
        for line in said:
            err.print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
        away, wrong = isinstance(error, _AWAY), isinstance(error, _WRONG)
        raise typer.Exit(UNREACHABLE if away else USAGE if wrong else FAILED) from error


def _settings(**changes: Any) -> Settings:
    """Settings from the environment. Raises ServiceError naming the variable that is wrong."""
    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{variable_of(str(item['loc'][0]))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        )
        raise ServiceError(f"a setting in the environment is wrong: {problems}") from None


def _client() -> ApiClient:
    settings = _settings()
    return ApiClient.of(settings, base_url(settings))


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def up(port: Port = None) -> None:
    """Start everything on this machine and keep it up: job store, Ray, API, supervisor.

    `REDIS_URL` and `RAY_ADDRESS` point at real ones; what is not set is started here and goes down with this command.
    Ctrl-C stops cleanly: a running job is requeued and goes on from its last checkpoint at the next start.
    """
    with _told():
        signals = Signals().install()
        from services.node.service import Service

        logs.configure("WARNING", role="service")
        Service(_settings(port=port), signals, _say).run()


@app.command()
def api(port: Port = None) -> None:
    """Run the API alone against a shared job store (`REDIS_URL`), as in a cluster."""
    with _told():
        signals = Signals().install()
        from services.node.service import run_api

        logs.configure(role="api")
        run_api(_settings(port=port), signals, _say)


@app.command()
def runner() -> None:
    """Run a supervisor alone against a shared job store (`REDIS_URL`) and Ray (`RAY_ADDRESS`), as in a cluster."""
    with _told():
        signals = Signals().install()
        from services.node.service import run_runner

        logs.configure(role="runner")
        run_runner(_settings(), signals, _say)


@app.command()
def submit(
    job_file: JobFile,
    set_: Overrides = [],  # noqa: B006
    idempotency_key: Annotated[str, typer.Option(help="Sending the same key again makes no second job.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job after submitting it.")] = False,
) -> None:
    """Send a job to the service.

    Paths in the file are relative to the file. Example:
    `accord submit examples/tiny_omninft.toml --set steps=5 --set seed=1`
    """
    with _told():
        client = _client()
        job = client.submit(read_job(job_file, set_), idempotency_key)
        _say(job.id)
        if out.is_terminal:
            _say(f"Follow it: accord watch {job.id}\nPage:      {client.url}{job.links['page']}")
        if watch:
            _watch(client, job.id)


@app.command()
def watch(job: JobId) -> None:
    """Follow a job live: a bar per stage, reward curves. Ctrl-C detaches, the job goes on."""
    with _told():
        _watch(_client(), job)


def _watch(client: ApiClient, job_id: str) -> None:
    found = client.job(job_id)
    picture = JobPicture(job_id, found.steps, found.name, began=found.created_at)
    try:
        show(client.follow(job_id), picture, out)
    except KeyboardInterrupt:
        _say(f"Detached; the job goes on. Cancel it: accord cancel {job_id}")
        return
    found = client.job(job_id)
    if found.state != "succeeded":
        err.print(f"{job_id} {found.state}: {found.message or found.reason}", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)


@app.command()
def jobs(limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20) -> None:
    """List jobs, newest first."""
    with _told():
        table = Table(box=None, header_style="dim")
        for column in ("job", "name", "state", "step", "attempt", "accepted"):
            table.add_column(column, no_wrap=column == "job")
        for job in _client().jobs(limit):
            why = job.waiting or job.reason
            state = job.state + (f" ({why})" if why else "")
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created_at))
            table.add_row(
                job.id, escape(job.name), escape(state), f"{job.step}/{job.steps}", str(job.attempt), at
            )  # fmt: skip
        out.print(table)


@app.command()
def cancel(job: JobId) -> None:
    """Ask a job to stop. It keeps its last checkpoint."""
    with _told():
        _say(f"{job} is {_client().cancel(job).state}")


@app.command("sign-in")
def sign_in() -> None:
    """Print a link that signs a browser in: it works once, within two minutes, and holds no key."""
    with _told():
        _say(_client().sign_in_link())


@app.command()
def delete(job: JobId) -> None:
    """Remove a job that has ended: its record at once, its run folder, adapter and clips included, within seconds."""
    with _told():
        _client().delete(job)
        _say(f"{job} is deleted")


@app.command()
def validate(job_file: JobFile, set_: Overrides = []) -> None:  # noqa: B006
    """Check a job file and the files it names, and print the job with every default filled in.

    What the job departs from, and what its surgery means for its model, goes to stderr.
    """
    from accord.config.job import JobSpec
    from accord.config.preflight import preflight
    from services.results.remarks import remarks

    with _told():
        spec = JobSpec.parse(shown(read_job(job_file, set_)))
        preflight(spec)
        print(shown(spec.model_dump(mode="json")))
        for remark in remarks(spec):
            err.print(remark, markup=False, highlight=False, soft_wrap=True, style="dim")


@app.command()
def plan(
    job_file: JobFile,
    set_: Overrides = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Bytes as JSON instead of a table.")] = False,
) -> None:
    """Show what a job will hold in memory and compute per step, before running it.

    Reads the model's configs; its weights may be missing. Example: `accord plan job.toml --set cluster.zero_stage=3`
    """
    from accord.config.job import JobSpec

    with _told():
        spec = JobSpec.parse(shown(read_job(job_file, set_)))
        from services.cli import plan as planning

        found = planning.plan(spec)
        if json:
            print(shown(found))
        else:
            planning.show(found, out)


@app.command("run")
def run_here(
    job_file: JobFile,
    set_: Overrides = [],  # noqa: B006
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Run folder. One that was interrupted goes on. Default: a new one in the runs folder."
        ),
    ] = None,
    save_groups: Annotated[
        Path | None, typer.Option("--save-groups", help="Keep every scored group in this folder.")
    ] = None,
    replay_groups: Annotated[
        Path | None, typer.Option("--replay-groups", help="Learn from saved groups: nothing is sampled or scored.")
    ] = None,
) -> None:
    """Train a job right here, without service, store or Ray: one process, and one more per further learner rank.

    The adapter is that of the service, bit for bit. To debug one half of a job alone, save its groups once and replay
    them: `accord run job.toml --save-groups groups`, then `accord run job.toml --replay-groups groups`.
    """
    from services.cli.here import run

    with _told():
        run(job_file, set_, _settings(), out, out_dir, save_groups, replay_groups)


@app.command()
def demo(
    job_file: Annotated[Path, typer.Argument(help="The job to run.")] = Path("examples/tiny_omninft.toml"),
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Start the service, run one whole job, show every reward before and after, stop everything."""
    from services.cli.demo import demo as run_demo

    with _told():
        status = run_demo(job_file, set_, _settings(), out)
    raise typer.Exit(status)


@app.command()
def export(
    job: JobId,
    to: Annotated[
        Literal["lora", "merged"],
        typer.Option("--to", help="`lora`: the adapter file for diffusers. `merged`: a whole pipeline directory."),
    ] = "lora",
    step: Annotated[int | None, typer.Option(min=1, help="Whose checkpoint; default: the last.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Default: `exports/` in the run folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links to the base's files; then write to neither.")
    ] = False,
) -> None:
    """Write a job's trained weights for use elsewhere. Needs the run folder, not the service.

    Example: `accord export JOB --to merged --out my-model`, then `path = "my-model"` in another job, or
    `LTX2Pipeline.from_pretrained("my-model")`.
    """
    from services.results.export import export as write

    with _told():
        _say(str(write(_settings().runs_dir, job, to, step=step, out=out_dir, force=force, link=link)))


@app.command("pretrain-tiny")
def pretrain_tiny(target: Annotated[Path, typer.Argument(metavar="OUT", show_default=False)]) -> None:
    """Build the tiny LTX-2 pipeline that ships with Accord, from nothing (about an hour of CPU)."""
    from tiny_models.build import pretrain_tiny as build

    with _told():
        build(target)


@rewards_app.command("list")
def rewards_list() -> None:
    """Show every reward server: state, replicas, load."""
    with _told():
        rewards = _rewards()
        table = Table(box=None, header_style="dim")
        for column in ("reward", "status", "replicas", "scoring", "waiting", "note"):
            table.add_column(column)
        for row in rewards.status():
            replicas = f"{row.replicas_ready}/{row.replicas_target}"
            held = f"holds {', '.join(row.rewards)} " if len(row.rewards) > 1 else ""
            note = escape((held + row.message)[:200])
            table.add_row(row.name, row.status, replicas, str(row.ongoing), str(row.queued), note)
        out.print(table)
        if not table.rows:
            _say("No reward server runs; the first job starts those it needs.")


@rewards_app.command("scale")
def rewards_scale(
    name: Annotated[str, typer.Argument(help="Reward, as in `accord rewards list`.", show_default=False)],
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="How many replicas it gets.", show_default=False)],
) -> None:
    """Give one reward more or fewer replicas; the others, and scoring under way, go on. Works while a job runs.

    Example: `accord rewards scale sync --replicas 2`
    """
    with _told():
        scaled = ", ".join(_rewards().scale(name, replicas))
        _say(f"{scaled}: {replicas} replica{'s' if replicas > 1 else ''}.")


@rewards_app.command("change")
def rewards_change(
    name: Annotated[str, typer.Argument(help="Reward, as in `accord rewards list`.", show_default=False)],
    set_: Annotated[list[str], typer.Option("--set", help="Field and value: `--set max_batch_groups=8`. Repeatable.")],
) -> None:
    """Give a running reward server other batches, queue or autoscaling; no replica restarts, scoring goes on.

    Example: `accord rewards change sync --set max_replicas=8 --set upscale_delay_s=2`
    """
    with _told():
        values = {}
        for item in set_:
            field, equals, value = item.partition("=")
            if not equals:
                raise UserError(f"--set {item}: write field=value")
            try:
                values[field] = json.loads(value)
            except ValueError:
                values[field] = value
        changed = ", ".join(_rewards().change(name, values))
        _say(f"{changed}: {', '.join(set_)}.")


@rewards_app.command("score")
def rewards_score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Clips, or folders.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What was asked for.")] = "",
    prompt_video: Annotated[str, typer.Option(help="What of it can be seen. Default: the prompt.")] = "",
    prompt_audio: Annotated[str, typer.Option(help="What of it can be heard. Default: the prompt.")] = "",
    reward: Annotated[list[str], typer.Option(help="Repeatable. Default: all without weights.")] = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="`--set clap.path=DIR`. Repeatable.")] = [],  # noqa: B006
    plot: Annotated[Path | None, typer.Option(help="Draw what the scores came from: a file, or a folder.")] = None,
    json: AsJson = False,
) -> None:
    """Score clips in files right here, without service, Ray or store.

    Example: `accord rewards score clip.mp4 --prompt "a dog barks" --reward sync --plot curves.png`
    """
    from accord.types import Prompt

    with _told():
        from services.cli import try_reward

        asked = Prompt("typed", prompt, prompt_video or prompt, prompt_audio or prompt)
        rows = []
        for row in try_reward.score(files, asked, try_reward.chosen(reward, set_), plot):
            rows.append(row)
            if not json:
                try_reward.show_scores(row, out)
        if json:
            print(shown(rows))


@rewards_app.command("check")
def rewards_check(
    name: RewardName,
    weights: Annotated[str, typer.Option(help="Where its weights are.", show_default=False)] = "",
    set_: RewardFields = [],  # noqa: B006
    json: AsJson = False,
) -> None:
    """Load a reward, score the canary set, print weights digest, licence, memory, latency and values.

    Example: `accord rewards check clap --weights models/clap-htsat-unfused`
    """
    with _told():
        from services.cli import try_reward

        found = try_reward.check(try_reward.spec_of(name, set_, weights))
        if json:
            print(shown(found))
        else:
            try_reward.show_check(found, out)


@rewards_app.command("contract")
def rewards_contract(name: RewardName, set_: RewardFields = []) -> None:  # noqa: B006
    """Hold a reward, yours too, to what all rewards promise. Exit status 1 when it breaks a promise.

    Example: `accord rewards contract loudness --set target_db=-23`
    """
    with _told():
        from reward_servers.contract import hold
        from services.cli import try_reward

        verdicts = list(hold(try_reward.spec_of(name, set_)))
        try_reward.show_verdicts(name, verdicts, out)
        if any(verdict.breaches for verdict in verdicts):
            raise typer.Exit(FAILED)


@rewards_app.command("exemplars")
def rewards_exemplars(
    name: RewardName,
    files: Annotated[list[Path], typer.Argument(help="Clips, or folders of them, as the policy's should be.")],
    to: Annotated[Path, typer.Option("--out", help="File to write.")],
) -> None:
    """Write clips as the exemplars of a reward that holds a step's clips against some.

    Example: `accord rewards exemplars audio_frechet good-clips/ --out exemplars.safetensors`
    """
    with _told():
        from services.cli import try_reward

        count = try_reward.exemplars(name, files, to)
        out.print(f"{count} clips written to {to}")


def _rewards() -> Any:
    """The module that manages reward servers, connected to Ray. Raises Unreachable."""
    address = ray_address(_settings())
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise Unreachable(f"Ray at {address} does not answer: {error}") from error
    from reward_servers import app as rewards

    return rewards
