"""The recipe that pretrains the tiny audio-video model on the built-in world.

1. Build the closed-form codecs, encode some thousand clips, tune the two decoders (`polish.py`).
2. Stage one: clean, fully synchronous clips and *independent* noise levels for video and audio. With one shared level
   each modality already shows its own events wherever the other one would, and the attention between them is never
   learnt; with independent levels the cleaner modality tells the noisier one where its events are.
3. Stage two: a short fine-tune on deliberately imperfect clips, so that reinforcement learning has something to mend
   while the clean and synchronous mode still exists among the samples.

Everything is a function of the seed and the number of steps; how many steps fit a time budget depends on the machine.
Shapes: N clips, B batch, P prompts, video tokens [B, 28, 40], audio tokens [B, 52, 16].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from accord.backbones.base import Conditions, Latents
from accord.backbones.ltx2.model import LTX2Backbone
from accord.diffusion.solver import noised
from accord.types import MODALITIES, Modality
from accord.world.scene import ALL_PROMPTS, CLEAN, Imperfections, make_clips
from tiny_models.descent import Say, descend
from tiny_models.pipeline import encode_clips, encode_text


@dataclass(frozen=True)
class Recipe:
    """The constants of the recipe. Times are minutes of wall clock, rates are per optimiser step."""

    seed: int = 0
    clean_clips: int = 6400
    imperfect_clips: int = 4800
    batch: int = 32
    learning_rate: float = 2e-3
    fine_tune_rate: float = 5e-4
    warmup_steps: int = 100
    ema: float = 0.995
    text_dropout: float = 0.10


@dataclass(frozen=True)
class Corpus:
    """Encoded clips: normalised packed latents and the index of each clip's caption in `ALL_PROMPTS`."""

    latents: Latents
    prompt: Tensor


class Denoiser(nn.Module):
    """Connectors and transformer as one module: the part of the backbone that is trained.

    It knows the frozen text features of the captions, the empty prompt last: [P + 1, 16, 192] and [P + 1, 16].
    """

    def __init__(self, backbone: LTX2Backbone) -> None:
        super().__init__()
        self.connectors = backbone.pipeline.connectors
        self.velocity_model = backbone.velocity_model
        captions = [*(prompt.prompt_av for prompt in ALL_PROMPTS), ""]
        self.embeds, self.mask = encode_text(backbone.pipeline, captions)

    def forward(self, latents: Latents, sigmas: Latents, prompt: Tensor) -> dict[Modality, Tensor]:
        """Velocities `noise - clean` of noisy latents [B, T, C] at levels [B]; `prompt` [B] numbers the captions."""
        video, audio, mask = self.connectors(self.embeds[prompt], self.mask[prompt], padding_side="left")
        velocity: dict[Modality, Tensor] = self.velocity_model(
            latents, sigmas, Conditions({"video": video, "audio": audio, "mask": mask})
        )
        return velocity


def make_corpus(backbone: LTX2Backbone, count: int, seed: int, imperfections: Imperfections = CLEAN) -> Corpus:
    """Make and encode `count` clips that go through all captions in turn."""
    clips = (made.clip for made in make_clips(count, seed, imperfections))
    return Corpus(encode_clips(backbone.pipeline, clips), torch.arange(count) % len(ALL_PROMPTS))


def draw_sigmas(batch: int, generator: torch.Generator) -> dict[Modality, Tensor]:
    """Noise levels by modality, [B] each in (0, 1).

    45 % independent, 20 % nearly clean video with noisy audio, 10 % the reverse, 25 % equal (as in sampling). The
    levels lean to the noisy side, where sampling decides when the events happen.
    """
    draws = torch.rand(4, batch, generator=generator)
    normal = torch.randn(2, batch, generator=generator)
    noisy = torch.sigmoid(0.7 + 1.2 * normal)
    nearly_clean = 0.02 + 0.28 * draws[1]
    high = 0.5 + 0.5 * draws[2]
    kind = draws[0]
    video = torch.where((kind >= 0.45) & (kind < 0.65), nearly_clean, noisy[0])
    audio = torch.where((kind >= 0.65) & (kind < 0.75), nearly_clean, noisy[1])
    audio = torch.where((kind >= 0.45) & (kind < 0.65), high, audio)
    video = torch.where((kind >= 0.65) & (kind < 0.75), high, video)
    audio = torch.where(kind >= 0.75, video, audio)
    return {"video": video.clamp(0.01, 0.999), "audio": audio.clamp(0.01, 0.999)}


def _draw_noise(latents: Latents, generator: torch.Generator) -> dict[Modality, Tensor]:
    return {modality: torch.randn(clean.shape, generator=generator) for modality, clean in latents.items()}


def _mixed(clean: Latents, noise: Latents, sigmas: Latents) -> dict[Modality, Tensor]:
    return {modality: noised(x0, noise[modality], sigmas[modality]) for modality, x0 in clean.items()}


def _errors(velocity: Latents, clean: Latents, noise: Latents) -> dict[Modality, Tensor]:
    return {modality: (v - (noise[modality] - clean[modality])).square().mean() for modality, v in velocity.items()}


def flow_loss(
    denoiser: Denoiser, corpus: Corpus, rows: Tensor, recipe: Recipe, generator: torch.Generator
) -> dict[Modality, Tensor]:
    """Mean squared velocity error by modality of the clips `rows` [B] at freshly drawn noise and levels."""
    clean = {modality: latents[rows] for modality, latents in corpus.latents.items()}
    dropped = torch.rand(len(rows), generator=generator) < recipe.text_dropout
    prompt = torch.where(dropped, len(ALL_PROMPTS), corpus.prompt[rows])
    sigmas = draw_sigmas(len(rows), generator)
    noise = _draw_noise(clean, generator)
    return _errors(denoiser(_mixed(clean, noise, sigmas), sigmas, prompt), clean, noise)


@torch.no_grad()
def coupling_probe(denoiser: Denoiser, corpus: Corpus, levels: tuple[float, float]) -> dict[Modality, float]:
    """How much worse each modality is denoised beside another clip's partner, as a fraction, at (video, audio) levels.

    Both sides use the same noise; the partner comes from a clip of the same caption (32 clips further on), so only
    what the text does not say, above all the event times, can make a difference. 0 means that the model ignores the
    other modality; the gate asks for 0.10 on the audio at levels (0.85, 0.85).
    """
    clean, prompt = corpus.latents, corpus.prompt
    noise = _draw_noise(clean, torch.Generator().manual_seed(7))
    sigmas = {modality: torch.full((len(prompt),), level) for modality, level in zip(MODALITIES, levels, strict=True)}
    noisy = _mixed(clean, noise, sigmas)
    other = {modality: x.roll(len(ALL_PROMPTS), 0) for modality, x in noisy.items()}
    worse: dict[Modality, float] = {}
    with torch.compiler.set_stance("force_eager"):
        own = _errors(denoiser(noisy, sigmas, prompt), clean, noise)
        for modality, x in noisy.items():
            beside = _errors(denoiser({**other, modality: x}, sigmas, prompt), clean, noise)
            worse[modality] = float(beside[modality]) / float(own[modality]) - 1.0
    return worse


@dataclass
class Trainer:
    """Gradient descent on the flow loss, with an exponential moving average of the weights."""

    denoiser: Denoiser
    recipe: Recipe
    say: Say
    average: dict[str, Tensor] = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        self.average = {key: value.detach().clone() for key, value in self.denoiser.state_dict().items()}

    def train(self, corpus: Corpus, probe: Corpus, minutes: float, rate: float, name: str) -> None:
        """Train on a corpus for so many minutes with the learning rate decaying from `rate` to 3 % of it."""
        recipe, first = self.recipe, self.steps
        generator = torch.Generator().manual_seed(recipe.seed + 1000 * (1 + self.steps))

        def loss() -> Tensor:
            rows = torch.randint(len(corpus.prompt), (recipe.batch,), generator=generator)
            losses = flow_loss(self.denoiser, corpus, rows, recipe, generator)
            return torch.stack([losses[modality] for modality in MODALITIES])

        for left, means in descend(
            list(self.denoiser.parameters()), loss, minutes, rate,
            warm_up=recipe.warmup_steps, least=0.03, weight_decay=0.01,
        ):  # fmt: skip
            self._blend()
            if means is not None:
                pace = (self.steps - first) / (60.0 * (minutes - left))
                self._report(name, means, probe, pace, left)

    def _blend(self) -> None:
        """One step of the moving average; it follows faster at the beginning."""
        self.steps += 1
        keep = min(self.recipe.ema, 1.0 - 1.0 / (1.0 + 0.2 * self.steps))
        with torch.no_grad():
            for key, value in self.denoiser.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1.0 - keep)

    def _report(self, name: str, losses: Tensor, probe: Corpus, pace: float, left: float) -> None:
        worse = coupling_probe(self.denoiser, probe, (0.85, 0.85))
        beside_clean = coupling_probe(self.denoiser, probe, (0.1, 0.85))
        self.say(
            f"{name}: step {self.steps}, loss video {losses[0]:.4f} audio {losses[1]:.4f}, "
            f"coupling at .85/.85 video {worse['video']:+.1%} audio {worse['audio']:+.1%}, at .1/.85 audio "
            f"{beside_clean['audio']:+.1%}, {pace:.2f} steps/s, {left:.1f} min left"
        )

    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        self.denoiser.load_state_dict(self.average)
