"""`accord rewards …`: try a reward here; see, scale and change the servers of the cluster."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from accord.config.guards import DriftSpec
from accord.errors import Unreachable, UserError
from services.cli.job_file import shown
from services.cli.shell import FAILED, AsJson, RewardFields, RewardName, out, say, settings_with, told
from services.connections import ray_address

app = typer.Typer(no_args_is_help=True, help="Rewards: try one here; see and scale their servers.")


@app.command("list")
def rewards_list() -> None:
    """Show every reward server: state, replicas, load."""
    with told():
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
            say("No reward server runs; the first job starts those it needs.")


@app.command("scale")
def rewards_scale(
    name: Annotated[str, typer.Argument(help="Reward, as in `accord rewards list`.", show_default=False)],
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="How many replicas it gets.", show_default=False)],
) -> None:
    """Give one reward more or fewer replicas; the others, and scoring under way, go on. Works while a job runs.

    Example: `accord rewards scale sync --replicas 2`
    """
    with told():
        scaled = ", ".join(_rewards().scale(name, replicas))
        say(f"{scaled}: {replicas} replica{'s' if replicas > 1 else ''}.")


@app.command("change")
def rewards_change(
    name: Annotated[str, typer.Argument(help="Reward, as in `accord rewards list`.", show_default=False)],
    set_: Annotated[list[str], typer.Option("--set", help="Field and value: `--set max_batch_groups=8`. Repeatable.")],
) -> None:
    """Give a running reward server other batches, queue or autoscaling; no replica restarts, scoring goes on.

    Example: `accord rewards change sync --set max_replicas=8 --set upscale_delay_s=2`
    """
    with told():
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
        say(f"{changed}: {', '.join(set_)}.")


@app.command("score")
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

    with told():
        from services.cli import try_reward

        asked = Prompt("typed", prompt, prompt_video or prompt, prompt_audio or prompt)
        rows = []
        for row in try_reward.score(files, asked, try_reward.chosen(reward, set_), plot):
            rows.append(row)
            if not json:
                try_reward.show_scores(row, out)
        if json:
            print(shown(rows))


@app.command("check")
def rewards_check(
    name: RewardName,
    weights: Annotated[str, typer.Option(help="Where its weights are.", show_default=False)] = "",
    set_: RewardFields = [],  # noqa: B006
    against: Annotated[
        Path | None, typer.Option(help="Compare with these values: a run's `canaries.json`, or an earlier `--out`.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest distance, in standard deviations of the first values.")
    ] = DriftSpec().tolerance,
    to: Annotated[Path | None, typer.Option("--out", help="Write the values, for `--against`.")] = None,
    json: AsJson = False,
) -> None:
    """Load a reward, score the canary set, print weights digest, licence, memory, latency and values.

    With `--against`, exit status 1 when a value is further from its first one than the tolerance.

    Example: `accord rewards check clap --weights models/clap-htsat-unfused --against runs/JOB/canaries.json`
    """
    with told():
        from services.cli import try_reward

        spec = try_reward.spec_of(name, set_, weights)
        found = try_reward.check(spec)
        drifted = against is not None and try_reward.compared(spec, found, against, tolerance)
        if to is not None:
            try_reward.keep_check(found, to)
        if json:
            print(shown(found))
        else:
            try_reward.show_check(found, out)
        if drifted:
            raise typer.Exit(FAILED)


@app.command("contract")
def rewards_contract(name: RewardName, set_: RewardFields = []) -> None:  # noqa: B006
    """Hold a reward, yours too, to what all rewards promise. Exit status 1 when it breaks a promise.

    Example: `accord rewards contract loudness --set target_db=-23`
    """
    with told():
        from reward_servers.contract import hold
        from services.cli import try_reward

        verdicts = list(hold(try_reward.spec_of(name, set_)))
        try_reward.show_verdicts(name, verdicts, out)
        if any(verdict.breaches for verdict in verdicts):
            raise typer.Exit(FAILED)


@app.command("exemplars")
def rewards_exemplars(
    name: RewardName,
    files: Annotated[list[Path], typer.Argument(help="Clips, or folders of them, as the policy's should be.")],
    to: Annotated[Path, typer.Option("--out", help="File to write.")],
    set_: RewardFields = [],  # noqa: B006
) -> None:
    """Write clips as the exemplars of a reward that holds a step's clips against some.

    They are of one embedder with its weights: `--set embedder=clap --set path=models/clap-htsat-unfused`.

    Example: `accord rewards exemplars audio_frechet good-clips/ --out exemplars.safetensors`
    """
    with told():
        from services.cli import try_reward

        count = try_reward.exemplars(name, set_, files, to)
        out.print(f"{count} clips written to {to}")


def _rewards() -> Any:
    """The module that manages reward servers, connected to Ray. Raises Unreachable."""
    address = ray_address(settings_with())
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise Unreachable(f"Ray at {address} does not answer: {error}") from error
    from reward_servers import app as rewards

    return rewards
