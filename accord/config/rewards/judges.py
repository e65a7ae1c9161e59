"""Rewards that ask a vision-language model behind a server of others, as specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.contract import Component, ModelFacts, Problem, RewardSpec
from accord.config.outside import TOKEN_NAME, allowed_url
from accord.config.paths import InputPath
from accord.config.reward_template import read_template
from accord.errors import UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class JudgeReward(RewardSpec):
    """One that asks an OpenAI-compatible server about some frames."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    prompt_anchored: ClassVar[bool] = True
    min_frames: ClassVar[int] = 1
    batch_tolerance: ClassVar[float] = 0.05
    route: Route = "video"
    url: str = Field(min_length=1, max_length=2048)
    """Base of the server's API, such as `http://judge:8000/v1`; its host must be in `ACCORD_REWARD_HOSTS`."""
    model: str = Field(min_length=1, max_length=256)
    """Name that the server has for the model; an answer by another one counts for nothing."""
    template: Annotated[str, InputPath("file")] = Field(default="", max_length=4096)
    """The question: a text with `{text_prompt}`, or the authors' Python file. "" = the reward's own words; a model that
    was tuned to a question wants that one."""
    token_env: str = Field(default="", pattern=TOKEN_NAME)
    """Name of the environment variable that holds the token, where the reward's server runs."""
    fps: float = Field(default=2.0, gt=0, le=60)
    max_looked_at: int = Field(default=16, ge=1, le=128)
    """Most frames of a clip that are sent."""
    side: int = Field(default=448, ge=28, le=2048)
    """Longer side of a frame that is sent; smaller ones stay as they are."""
    call_s: float = Field(default=60.0, gt=0, le=3600)
    """Wall time for one question, retries included."""
    retries: int = Field(default=2, ge=0, le=2)
    """After a broken connection and after 429 and 503, within `call_s`; after nothing else."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Questions that are asked at once."""
    max_answer_bytes: int = Field(default=4 * 2**20, ge=1024, le=64 * 2**20)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: an address that is none or not allowed, a question without a place for the prompt."""
        yield from super().problems(job, facts)
        try:
            allowed_url(self.url)
        except UserError as error:
            yield "url", str(error)
        if facts is not None and self.template:
            try:
                read_template(Path(self.template), ())
            except UserError as error:
                yield "template", str(error)


class VLMJudgeReward(JudgeReward):
    """The verdict of a vision-language model behind an OpenAI-compatible server."""

    impl: ClassVar[str] = "reward_servers.models.vlm_judge:VLMJudgeModel"
    about: ClassVar[str] = "a vision-language model thinks well of it"
    range: ClassVar[tuple[float, float]] = (0.0, 5.0)
    components: ClassVar[Mapping[str, Component]] = {
        "quality": Component("visual quality; style with unified_reward", low=1.0, high=5.0, better="higher"),
        "alignment": Component("agreement with the text", low=1.0, high=5.0, better="higher"),
        "physics": Component("physical and common sense", low=1.0, high=5.0, better="higher"),
        "mass": Component("least probability that fell on the possible answers", low=0.0, high=1.0),
    }
    name: Literal["vlm_judge"] = "vlm_judge"
    preset: Literal["videoscore2", "unified_reward", "yes_probability"] = "yes_probability"
    """What is asked, and how the answer is read."""
    max_tokens: int = Field(default=1024, ge=1, le=16_384)
    """Longest answer; yes or no is one token."""


class VLMRankingReward(JudgeReward):
    """How often a vision-language model would pick a clip over the others of its prompt."""

    impl: ClassVar[str] = "reward_servers.models.vlm_ranking:VLMRankingModel"
    about: ClassVar[str] = "a vision-language model would pick it over the other clips of its prompt"
    scope: ClassVar[Literal["clip", "group", "step"]] = "group"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    components: ClassVar[Mapping[str, Component]] = {
        "wins": Component("share of its pairs in which it is the likelier one, a tie counting half", low=0.0, high=1.0),
        "pairs": Component("pairs with another clip that were judged", low=1.0),
        "position_bias": Component("by how much standing first raises a clip's chance, mean of its pairs", low=-0.5,
                                   high=0.5),
        "mass": Component("least probability that fell on the two answers", low=0.0, high=1.0),
    }  # fmt: skip
    name: Literal["vlm_ranking"] = "vlm_ranking"
    answers: tuple[str, str] = ("A", "B")
    """First token of an answer that prefers the first video, and of one that prefers the second, in any case."""
    opponents: int = Field(default=0, ge=0, le=64)
    """Others that each clip is held against, half before and half behind it in an order by content; 0 = all. A pair
    takes two calls."""
    ranking_s: float = Field(default=300.0, gt=0, le=3600)
    """Wall time for all pairs of a group; those that are not judged by then are missing."""
    max_batch_groups: int = Field(default=1, ge=1, le=256)
    deadline_s: float = Field(default=600.0, gt=0, le=3600)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: a ranking that may outlast the reward, answers that cannot be told apart."""
        yield from super().problems(job, facts)
        whole = self.ranking_s * self.max_batch_groups
        if whole >= self.deadline_s:
            told = f"{self.ranking_s:g} s for each of max_batch_groups ({self.max_batch_groups}) groups"
            yield "ranking_s", f"{told} is no less than deadline_s ({self.deadline_s:g}), at which all would be lost"
        first, second = (answer.strip().lower() for answer in self.answers)
        if not first or not second or first == second:
            yield "answers", f"{list(self.answers)} are not two different words; write what the judge answers"
        if self.opponents % 2:
            yield "opponents", f"{self.opponents} is odd, and half of them stand on either side; use an even number"
