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


class VLMJudgeReward(RewardSpec):
    """The verdict of a vision-language model behind an OpenAI-compatible server."""

    impl: ClassVar[str] = "reward_servers.models.vlm_judge:VLMJudgeModel"
    about: ClassVar[str] = "a vision-language model thinks well of it"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    prompt_anchored: ClassVar[bool] = True
    min_frames: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (0.0, 5.0)
    components: ClassVar[Mapping[str, Component]] = {
        "quality": Component("visual quality; style with unified_reward", low=1.0, high=5.0, better="higher"),
        "alignment": Component("agreement with the text", low=1.0, high=5.0, better="higher"),
        "physics": Component("physical and common sense", low=1.0, high=5.0, better="higher"),
        "mass": Component("least probability that fell on the possible answers", low=0.0, high=1.0),
    }
    batch_tolerance: ClassVar[float] = 0.05
    name: Literal["vlm_judge"] = "vlm_judge"
    route: Route = "video"
    url: str = Field(min_length=1, max_length=2048)
    """Base of the server's API, such as `http://judge:8000/v1`; its host must be in `ACCORD_REWARD_HOSTS`."""
    model: str = Field(min_length=1, max_length=256)
    """Name that the server has for the model; an answer by another one counts for nothing."""
    preset: Literal["videoscore2", "unified_reward", "yes_probability"] = "yes_probability"
    """What is asked, and how the answer is read."""
    template: Annotated[str, InputPath("file")] = Field(default="", max_length=4096)
    """The question: a text with `{text_prompt}`, or the authors' Python file. "" = the preset's own words; a model that
    was tuned to a question wants that one."""
    token_env: str = Field(default="", pattern=TOKEN_NAME)
    """Name of the environment variable that holds the token, where the reward's server runs."""
    fps: float = Field(default=2.0, gt=0, le=60)
    max_looked_at: int = Field(default=16, ge=1, le=128)
    """Most frames that are sent."""
    side: int = Field(default=448, ge=28, le=2048)
    """Longer side of a frame that is sent; smaller ones stay as they are."""
    max_tokens: int = Field(default=1024, ge=1, le=16_384)
    """Longest answer; yes or no is one token."""
    call_s: float = Field(default=60.0, gt=0, le=3600)
    """Wall time for one clip, retries included."""
    retries: int = Field(default=2, ge=0, le=2)
    """After a broken connection, and after nothing else."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Clips that are asked about at once."""
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
