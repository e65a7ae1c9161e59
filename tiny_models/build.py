"""Build the tiny model from nothing: the whole recipe in order, from codecs to model card.

`pretrain_tiny` is what `accord pretrain-tiny` calls. The stages share one time budget; how many steps fit in it depends
on the machine, so two machines give models of the same kind, not the same bytes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.backbones.ltx2.model import LTX2Backbone
from accord.types import MODALITIES, Modality
from accord.world.latent_distance import fit_statistics, load_clean_world, save_clean_world
from accord.world.scene import IMPERFECT, make_clips
from tiny_models import gates
from tiny_models.card import Measured, contact_sheet, spectrogram_sheet, write_card
from tiny_models.codecs import build_audio_vae, build_video_vae, build_vocoder, codec_clips, log_mel, video_to_tensor
from tiny_models.descent import Say
from tiny_models.pipeline import build_pipeline, load_backbone, save_pipeline
from tiny_models.polish import polish_audio, polish_video
from tiny_models.pretrain import Corpus, Denoiser, Recipe, Trainer, coupling_probe, make_corpus

SHARES = {"video decoder": 0.14, "audio decoder": 0.10, "stage one": 0.60, "stage two": 0.16}
PROBES: dict[str, tuple[tuple[float, float], Modality]] = {
    "video at .85/.85": ((0.85, 0.85), "video"),
    "audio at .85/.85": ((0.85, 0.85), "audio"),
    "audio at .1/.85": ((0.1, 0.85), "audio"),
}
EVALUATION_CLIPS = 192


def untrained_pipeline(seed: int, clips: int = 960) -> Any:
    """The complete pipeline with closed-form codecs and an untrained transformer; takes a few seconds."""
    fitted = codec_clips(clips, seed)
    vae = build_video_vae(video_to_tensor(np.stack([clip.video for clip in fitted])))
    audio_vae = build_audio_vae(log_mel(torch.from_numpy(np.stack([clip.audio for clip in fitted]))))
    return build_pipeline(vae, audio_vae, build_vocoder(), seed)


def _compile_blocks(backbone: LTX2Backbone, say: Say) -> None:
    """Compile the transformer blocks one by one, which takes a minute and makes a step about 1.6 times as fast."""
    for block in backbone.pipeline.transformer.transformer_blocks:
        block.compile(dynamic=False)
    say("the first step compiles the transformer blocks: about a minute")


def probe_corpus(backbone: LTX2Backbone, seed: int) -> Corpus:
    """Clean clips that nothing was trained on."""
    return make_corpus(backbone, 256, seed + 2)


def probe_all(backbone: LTX2Backbone, seed: int) -> dict[str, float]:
    """The coupling probe at the noise levels that the card reports."""
    denoiser, probe = Denoiser(backbone), probe_corpus(backbone, seed)
    return {name: coupling_probe(denoiser, probe, levels)[modality] for name, (levels, modality) in PROBES.items()}


def certify(
    directory: Path,
    stage_one: Path,
    statistics: Path,
    minutes: dict[str, float],
    steps: dict[str, int],
    seed: int,
) -> Measured:
    """Measure the shipped directory and the clean model beside it, write card and pictures, return what was found."""
    shipped, clean_model = load_backbone(directory), load_backbone(stage_one)
    world = load_clean_world(statistics)
    prompts = gates.even_prompts(EVALUATION_CLIPS)
    truth = gates.as_clip_set(list(make_clips(EVALUATION_CLIPS, seed + 90)))
    damaged = gates.as_clip_set(list(make_clips(EVALUATION_CLIPS, seed + 91, IMPERFECT)))
    samples = gates.sample_clips(shipped, prompts, seed + 92)
    clean_samples = gates.sample_clips(clean_model, prompts, seed + 92)
    rows = {
        "clean world": gates.measure_clips(truth),
        "clean, through codecs": gates.measure_clips(gates.through_codecs(shipped, truth), world),
        "imperfect, through codecs": gates.measure_clips(gates.through_codecs(shipped, damaged), world),
        "stage one samples": gates.measure_clips(clean_samples, world),
        "shipped samples": gates.measure_clips(samples, world),
    }
    coupling = {"stage one": probe_all(clean_model, seed), "shipped": probe_all(shipped, seed)}
    passed = gates.verdict(coupling["shipped"]["audio at .85/.85"], rows["stage one samples"], rows["shipped samples"])
    measured = Measured(rows, coupling, passed, minutes, steps)
    draw(samples, clean_samples, directory)
    write_card(directory, measured)
    return measured


def draw(samples: gates.ClipSet, clean_samples: gates.ClipSet, directory: Path) -> None:
    """The pictures of the card, from the first samples of captions that differ in colour and sound; not chosen."""

    def pick(clips: gates.ClipSet, rows: list[int]) -> gates.ClipSet:
        return gates.ClipSet([clips.prompts[row] for row in rows], [clips.clips[row] for row in rows])

    shown = pick(samples, [0, 5, 10, 15, 16, 21, 26, 31])
    contact_sheet(shown, directory / "contact_sheet.png")
    spectrogram_sheet(shown, directory / "spectrograms.png")
    contact_sheet(pick(clean_samples, [0, 5, 26, 31]), directory / "contact_sheet_stage_one.png")


def pretrain_tiny(
    out_dir: Path, *, budget_minutes: float = 45.0, seed: int = 0, threads: int = 2, say: Say = print
) -> Measured:
    """Build, train, measure and write the tiny model.

    Writes `out_dir/tiny-ltx2` (the pipeline directory with its card), `out_dir/clean_world.safetensors` and, under
    `out_dir/work`, the clean model of stage one.

    Args:
        out_dir: where to write; made if missing.
        budget_minutes: wall clock for training; building, encoding, compiling and measuring add about eight minutes.
        seed: everything random follows from it.
        threads: CPU threads for torch.
        say: receives a line every minute or so.

    Raises:
        ValueError: if the budget is not positive.
    """
    if not budget_minutes > 0.0:
        raise ValueError(f"budget_minutes must be positive, got {budget_minutes}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    minutes = {name: share * budget_minutes for name, share in SHARES.items()}
    directory, stage_one = out_dir / "tiny-ltx2", out_dir / "work" / "stage-one-ltx2"
    statistics = out_dir / "clean_world.safetensors"
    started = time.monotonic()
    say("building the codecs")
    save_pipeline(untrained_pipeline(seed), directory)
    backbone = load_backbone(directory)  # as rounded on disk, so that latents match the shipped encoders
    pipeline = backbone.pipeline
    polish_video(pipeline.vae, seed + 60, minutes["video decoder"], say)
    polish_audio(pipeline.audio_vae, seed + 50, minutes["audio decoder"], say)
    recipe = Recipe(seed=seed)
    say("encoding the clips")
    clean, probe = make_corpus(backbone, recipe.clean_clips, seed + 1), probe_corpus(backbone, seed)
    save_clean_world({modality: fit_statistics(clean.latents[modality]) for modality in MODALITIES}, statistics)
    _compile_blocks(backbone, say)
    trainer = Trainer(Denoiser(backbone), recipe, say)
    trainer.train(clean, probe, minutes["stage one"], recipe.learning_rate, "stage one")
    steps = {"stage one": trainer.steps}
    trainer.use_average()
    save_pipeline(pipeline, stage_one)
    imperfect = make_corpus(backbone, recipe.imperfect_clips, seed + 3, IMPERFECT)
    trainer.train(imperfect, probe, minutes["stage two"], recipe.fine_tune_rate, "stage two")
    trainer.use_average()
    save_pipeline(pipeline, directory)
    steps["stage two"] = trainer.steps - steps["stage one"]
    minutes["all"] = (time.monotonic() - started) / 60.0
    say("measuring")
    measured = certify(directory, stage_one, statistics, minutes, steps, seed)
    for name, passed in measured.gates.items():
        say(f"gate {'passed' if passed else 'FAILED'}: {name}")
    return measured
