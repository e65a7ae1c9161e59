"""A reward that somebody else's server judges, as a spec. The wire is `reward_servers/wire.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from accord.config.base import Spec
from accord.config.contract import Component, ModelFacts, Problem, RewardSpec
from accord.config.outside import TOKEN_NAME, allowed_url
from accord.config.paths import MIB, InputPath
from accord.errors import UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec

Needs = Annotated[tuple[Modality, ...], Field(min_length=1, max_length=2)]
ComponentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,59}$")]


class CardSpec(Spec):
    """What the job takes a reward of others for. Its server's own card has to say the same before the first step."""

    version: str = Field(min_length=1, max_length=200)
    """Its version; an answer of another one counts for nothing."""
    weights_digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of its weights; "" = it has none."""
    scope: Literal["clip", "group"] = "clip"
    """What one value needs to be seen: the clip alone, or all clips of its prompt."""
    needs: Needs
    """What is sent: video, audio, or both."""
    low: float | None = None
    """Smallest value; none = there is none."""
    high: float | None = None
    floor: float = 0.0
    """Value of a clip that is empty where it looks."""
    prompt_anchored: bool = False
    """Whether the prompt's text counts."""
    component_names: tuple[ComponentName, ...] = Field(default=(), max_length=64)
    """Components that are kept of its scores; others are dropped."""
    batch_tolerance: float = Field(default=0.0, ge=0)
    """How far company may move a score."""

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def components(self) -> Mapping[str, Component]:
        """Components, as little as is known of them."""
        return {name: Component("as its server calls it") for name in self.component_names}


class _OfCard:
    """A class variable of `RewardSpec` that is another one in each job: what stands under its name in `card`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, spec: RemoteReward | None, owner: type) -> Any:
        return getattr(RewardSpec if spec is None else spec.card, self._name)


def _of_card() -> Any:
    return _OfCard()


class RemoteReward(RewardSpec):
    """The verdict of somebody else's server that speaks Accord's wire."""

    impl: ClassVar[str] = "reward_servers.models.remote:RemoteModel"
    labelled: ClassVar[str] = "remote"
    about: ClassVar[str] = "the server of others thinks well of it"
    version: ClassVar[str] = _of_card()
    scope: ClassVar[Literal["clip", "group", "step"]] = _of_card()
    needs: ClassVar[tuple[Modality, ...]] = _of_card()
    needs_sound: ClassVar[bool] = False  # what silence is worth, its server says
    prompt_anchored: ClassVar[bool] = _of_card()
    range: ClassVar[tuple[float, float]] = _of_card()
    floor: ClassVar[float] = _of_card()
    components: ClassVar[Mapping[str, Component]] = _of_card()
    batch_tolerance: ClassVar[float] = _of_card()
    licence: ClassVar[str] = "that of its server"
    name: str = Field(pattern=r"^remote:[a-z][a-z0-9_]{0,39}$")
    """`remote:` and a label of the job's own, such as `remote:motion`: a job may list several."""
    route: Route
    url: str = Field(min_length=1, max_length=2048)
    """Base of the server's API, such as `https://rewards.example.org/v1`; its host must be in `ACCORD_REWARD_HOSTS`."""
    reward: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}$")
    """Name that the server has for the reward; `NAME:APPLICATION` where it serves several of that name."""
    card: CardSpec
    token_env: str = Field(default="", pattern=TOKEN_NAME)
    """Name of the environment variable that holds the token, where this reward's own server runs."""
    ca_file: Annotated[str, InputPath("file", MIB)] = Field(default="", max_length=4096)
    """Certificates (PEM) that vouch for the server; "" = those that browsers trust."""
    call_s: float = Field(default=30.0, gt=0, le=3600)
    """Wall time for one call, from its first try to the last byte of the answer."""
    retries: int = Field(default=2, ge=0, le=2)
    """After a broken connection and after 429 and 503, within `call_s`; after nothing else."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Calls at once."""
    max_answer_bytes: int = Field(default=MIB, ge=1024, le=64 * MIB)
    max_batch_pixels: int = Field(default=150_000_000, ge=0)
    """Pixels that one call sends; with the default a body stays below 512 MiB. 0 = no bound."""
    max_replicas: int = Field(default=1, ge=1, le=1000)
    """Of this reward's own server, which waits rather than works; more of them ask more at once."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: an address that is none or not allowed, and what of the card does not fit together."""
        yield from super().problems(job, facts)
        try:
            allowed_url(self.url)
        except UserError as error:
            yield "url", str(error)
        if self.ca_file and not self.url.startswith("https:"):
            yield "ca_file", f"there is no TLS to {self.url}; write https, or leave it out"
        low, high = self.range
        if not low < high:
            yield "card/low", f"{low:g} to {high:g} holds nothing; give the smaller value as low"
        elif not low <= self.floor <= high:
            yield "card/floor", f"{self.floor:g} lies outside of {low:g} to {high:g}; give a value of the range"
        if self.route != "both" and self.route not in self.needs:
            yield "route", f"is {self.route}, and it looks at {', '.join(self.needs)} alone; route it there"
        if self.call_s > self.deadline_s:
            yield "call_s", f"{self.call_s:g} s are more than deadline_s ({self.deadline_s:g}); use less"
