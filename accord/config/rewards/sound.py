"""Learned rewards of the sound alone, as specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from accord.config.ast_dir import FILES as AST_FILES
from accord.config.ast_dir import inspect_ast
from accord.config.audiobox_files import CONFIG, WHOLE, inspect_audiobox
from accord.config.clap_dir import inspect_clap_dir
from accord.config.contract import Component, ModelFacts, Problem
from accord.config.dnsmos_file import WEIGHTS as DNSMOS_WEIGHTS
from accord.config.dnsmos_file import inspect_dnsmos
from accord.config.files import remembered
from accord.config.paths import InputPath, NamedPath
from accord.config.rewards.bundle import BundledReward, told
from accord.config.whisper_dir import FILES as WHISPER_FILES
from accord.config.whisper_dir import WhisperFiles, inspect_whisper
from accord.errors import UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class AudioboxReward(BundledReward):
    """Enjoyment, usefulness, complexity and production quality of the sound (AudioBox-Aesthetics)."""

    impl: ClassVar[str] = "reward_servers.models.audiobox:AudioboxModel"
    about: ClassVar[str] = "people find the sound enjoyable, useful and well made"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    folder: ClassVar[str] = "audiobox-aesthetics"
    weight_files: ClassVar[tuple[str, ...]] = ("checkpoint.pt", "model.safetensors")
    floor: ClassVar[float] = -0.175
    components: ClassVar[Mapping[str, Component]] = {
        "ce": Component("content enjoyment", low=1.0, high=10.0, better="higher"),
        "cu": Component("content usefulness", low=1.0, high=10.0, better="higher"),
        "pc": Component("production complexity", low=1.0, high=10.0),
        "pq": Component("production quality", low=1.0, high=10.0, better="higher"),
    }
    licence: ClassVar[str] = "CC-BY-4.0"
    name: Literal["audiobox"] = "audiobox"
    route: Route = "audio"
    value: Literal["quality", "mean"] = "quality"
    """quality: (CE + CU + PQ - PC) / 40. mean: of the four axes, over 10."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)

    @override
    def files(self) -> Iterable[NamedPath]:
        """The weights, and the config beside those that have one."""
        yield from super().files()
        if self.weights.suffix == WHOLE:
            yield NamedPath(("path",), str(self.weights.with_name(CONFIG)), InputPath("file"))

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.audiobox_files`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_audiobox, str(self.weights))


class ClapReward(BundledReward):
    """Text-audio cosine similarity of a CLAP checkpoint."""

    impl: ClassVar[str] = "reward_servers.models.clap:ClapRewardModel"
    about: ClassVar[str] = "the sound is the one the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    prompt_anchored: ClassVar[bool] = True
    folder: ClassVar[str] = "CLAP"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    floor: ClassVar[float] = -0.25
    components: ClassVar[Mapping[str, Component]] = {
        "windows": Component("stretches of the checkpoint's length that the sound was cut into", low=1.0)
    }
    name: Literal["clap"] = "clap"
    route: Route = "audio"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-clap", min_length=1, max_length=4096)
    """Directory of a transformers `ClapModel`, a bundle with it in `CLAP/`, or `builtin:tiny-clap`."""
    num_cpus: float = Field(default=0.2, ge=0, le=64)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.clap_dir`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_clap_dir, str(self.weights))


class AudioEventsReward(BundledReward):
    """Whether the sounds that the prompt names are heard, and strange ones are not (AST, tags of AudioSet)."""

    impl: ClassVar[str] = "reward_servers.models.audio_events:AudioEventsModel"
    about: ClassVar[str] = "the sounds that the text names are heard, and no strange ones"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    needs_sound: ClassVar[bool] = False
    prompt_anchored: ClassVar[bool] = True
    accelerator: ClassVar[bool] = True
    folder: ClassVar[str] = "ast-finetuned-audioset-10-10-0.4593"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    floor: ClassVar[float] = -0.5
    components: ClassVar[Mapping[str, Component]] = {
        "present": Component("mean probability of the events that the text names", low=0.0, high=1.0, better="higher"),
        "weakest": Component("probability of the least of them", low=0.0, high=1.0, better="higher"),
        "stray": Component("how far the strongest strange event is above `strong`", low=0.0, high=1.0, better="lower"),
        "events": Component("events that the text names", low=1.0),
        "windows": Component("stretches of the checkpoint's length that the sound was cut into", low=1.0),
    }
    licence: ClassVar[str] = "BSD-3-Clause"
    name: Literal["audio_events"] = "audio_events"
    route: Route = "audio"
    strong: float = Field(default=0.3, ge=0, lt=1)
    """Probability from which an event that the text does not name counts against a sound."""
    penalty: float = Field(default=0.5, ge=0, le=1)
    """Weight of the strongest such event."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=300.0, gt=0, le=3600)

    @override
    def files(self) -> Iterable[NamedPath]:
        """Config, settings of the extractor and weights."""
        yield from (NamedPath(("path",), str(self.weights / name), InputPath("file")) for name in AST_FILES)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.ast_dir`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_ast, str(self.weights))


class DnsmosReward(BundledReward):
    """How good people would find the speech in the sound (DNSMOS P.835)."""

    impl: ClassVar[str] = "reward_servers.models.dnsmos:DnsmosModel"
    about: ClassVar[str] = "speech is clear and nothing disturbs it"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    folder: ClassVar[str] = "DNSMOS"
    weight_files: ClassVar[tuple[str, ...]] = (DNSMOS_WEIGHTS,)
    floor: ClassVar[float] = 1.0
    components: ClassVar[Mapping[str, Component]] = {
        "sig": Component("quality of the speech itself, on a scale of 1 to 5", better="higher"),
        "bak": Component("how little the background disturbs, on that scale", better="higher"),
        "ovrl": Component("overall quality, on that scale", better="higher"),
        "windows": Component("stretches of 9.01 s that were heard", low=1.0),
    }
    licence: ClassVar[str] = "CC-BY-4.0"
    name: Literal["dnsmos"] = "dnsmos"
    route: Route = "audio"
    personalized: bool = False
    """The file is that of `pDNSMOS`, which hears other voices than the speaker's as background."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the network's file, see `accord.config.dnsmos_file`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_dnsmos, str(self.weights))


class SpeechWordsReward(BundledReward):
    """Whether what the prompt has somebody say is what is said (Whisper, word error rate)."""

    impl: ClassVar[str] = "reward_servers.models.speech_words:SpeechWordsModel"
    about: ClassVar[str] = "what the text has somebody say is what is said"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    needs_sound: ClassVar[bool] = False
    prompt_anchored: ClassVar[bool] = True
    accelerator: ClassVar[bool] = True
    folder: ClassVar[str] = "whisper-base"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    components: ClassVar[Mapping[str, Component]] = {
        "wer": Component("word error rate", low=0.0, better="lower"),
        "wanted": Component("words that the text has somebody say", low=1.0),
        "heard": Component("words that were heard", low=0.0),
    }
    name: Literal["speech_words"] = "speech_words"
    route: Route = "audio"
    language: str = Field(default="en", pattern="^[a-z]{2,3}$")
    """Code of the language that is spoken; a checkpoint of English alone knows `en`."""
    max_tokens: int = Field(default=224, ge=1, le=4096)
    """Most tokens that are written for each stretch of sound."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=300.0, gt=0, le=3600)

    @override
    def files(self) -> Iterable[NamedPath]:
        """Configs, tokenizer and weights."""
        yield from (NamedPath(("path",), str(self.weights / name), InputPath("file")) for name in WHISPER_FILES)

    def unfit(self, files: WhisperFiles) -> Problem | None:
        """What it asks of a checkpoint that this one cannot do."""
        known = files.tokens.languages or {"en": 0}
        if self.language not in known:
            return (
                "language",
                f"{self.language!r} is none of the {len(known)} that {files.root} knows; take another model",
            )
        most = files.places - len(files.start_of(self.language))
        if self.max_tokens > most:
            return "max_tokens", f"{self.max_tokens} are more than the {most} that {files.root} has places for"
        return None

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.whisper_dir`, and what is asked of them."""
        yield from super().problems(job, facts)
        if facts is None:
            return
        try:
            unfit = self.unfit(remembered(inspect_whisper, str(self.weights)))
        except UserError as error:
            unfit = ("path", str(error))
        if unfit is not None:
            yield unfit
