"""The commands of `accord`. Importing them is light: Ray and torch load only in the commands that need them.

Exit statuses and what else all commands have: shell.py. `accord rewards …`: rewards.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from accord import logs
from services.cli.client import ApiClient
from services.cli.job_file import read_job, shown
from services.cli.rewards import app as rewards_app
from services.cli.shell import FAILED, JobFile, JobId, Overrides, Port, err, out, say, settings_with, told
from services.cli.watch import JobPicture
from services.cli.watch import watch as show
from services.connections import base_url
from services.signals import Signals

app = typer.Typer(
    name="accord", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="RL post-training for joint audio-video diffusion models.\n\n"
    "On one machine: `accord up` in one terminal; in another `accord submit examples/tiny_omninft.toml` and "
    "`accord watch JOB`. `accord demo` does all of it and stops again.",
    epilog="Exit status: 0 done, 1 the job failed, 2 wrong input, 3 nothing answers. Settings: environment variables "
    "`ACCORD_*`, `REDIS_URL`, `RAY_ADDRESS`.",
)  # fmt: skip
app.add_typer(rewards_app, name="rewards")


def _client() -> ApiClient:
    settings = settings_with()
    return ApiClient.of(settings, base_url(settings))


@app.command()
def up(port: Port = None) -> None:
    """Start everything on this machine and keep it up: job store, Ray, API, supervisor.

    `REDIS_URL` and `RAY_ADDRESS` point at real ones; what is not set is started here and goes down with this command.
    Ctrl-C stops cleanly: a running job is requeued and goes on from its last checkpoint at the next start.
    """
    with told():
        signals = Signals().install()
        from services.node.service import Service

        logs.configure("WARNING", role="service")
        Service(settings_with(port=port), signals, say).run()


@app.command()
def api(port: Port = None) -> None:
    """Run the API alone against a shared job store (`REDIS_URL`), as in a cluster."""
    with told():
        signals = Signals().install()
        from services.node.service import run_api

        logs.configure(role="api")
        run_api(settings_with(port=port), signals, say)


@app.command()
def runner() -> None:
    """Run a supervisor alone against a shared job store (`REDIS_URL`) and Ray (`RAY_ADDRESS`), as in a cluster."""
    with told():
        signals = Signals().install()
        from services.node.service import run_runner

        logs.configure(role="runner")
        run_runner(settings_with(), signals, say)


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
    with told():
        client = _client()
        job = client.submit(read_job(job_file, set_), idempotency_key)
        say(job.id)
        if out.is_terminal:
            say(f"Follow it: accord watch {job.id}\nPage:      {client.url}{job.links['page']}")
        if watch:
            _watch(client, job.id)


@app.command()
def watch(job: JobId) -> None:
    """Follow a job live: a bar per stage, reward curves. Ctrl-C detaches, the job goes on."""
    with told():
        _watch(_client(), job)


def _watch(client: ApiClient, job_id: str) -> None:
    found = client.job(job_id)
    picture = JobPicture(job_id, found.steps, found.name, began=found.created_at)
    try:
        show(client.follow(job_id), picture, out)
    except KeyboardInterrupt:
        say(f"Detached; the job goes on. Cancel it: accord cancel {job_id}")
        return
    found = client.job(job_id)
    if found.state != "succeeded":
        err.print(f"{job_id} {found.state}: {found.message or found.reason}", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)


@app.command()
def jobs(limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20) -> None:
    """List jobs, newest first."""
    with told():
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
    with told():
        say(f"{job} is {_client().cancel(job).state}")


@app.command("sign-in")
def sign_in() -> None:
    """Print a link that signs a browser in: it works once, within two minutes, and holds no key."""
    with told():
        say(_client().sign_in_link())


@app.command()
def delete(job: JobId) -> None:
    """Remove a job that has ended: its record at once, its run folder, adapter and clips included, within seconds."""
    with told():
        _client().delete(job)
        say(f"{job} is deleted")


@app.command()
def validate(job_file: JobFile, set_: Overrides = []) -> None:  # noqa: B006
    """Check a job file and the files it names, and print the job with every default filled in.

    What the job departs from, and what its surgery means for its model, goes to stderr.
    """
    from accord.config.job import JobSpec
    from accord.config.preflight import preflight
    from services.results.remarks import remarks

    with told():
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

    with told():
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

    with told():
        run(job_file, set_, settings_with(), out, out_dir, save_groups, replay_groups)


@app.command()
def demo(
    job_file: Annotated[Path, typer.Argument(help="The job to run.")] = Path("examples/tiny_omninft.toml"),
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Start the service, run one whole job, show every reward before and after, stop everything."""
    from services.cli.demo import demo as run_demo

    with told():
        status = run_demo(job_file, set_, settings_with(), out)
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

    with told():
        say(str(write(settings_with().runs_dir, job, to, step=step, out=out_dir, force=force, link=link)))


@app.command("pretrain-tiny")
def pretrain_tiny(target: Annotated[Path, typer.Argument(metavar="OUT", show_default=False)]) -> None:
    """Build the tiny LTX-2 pipeline that ships with Accord, from nothing (about an hour of CPU)."""
    from tiny_models.build import pretrain_tiny as build

    with told():
        build(target)
