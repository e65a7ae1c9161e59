"""Build the tiny model from nothing: the whole recipe in order, from codecs to model card.

`pretrain_tiny` is what `accord pretrain-tiny` calls. The stages share one time budget; how many steps fit in it depends
on the machine, so two machines give models of the same kind, not the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.world.heldout import fit_statistics, load_clean_world, save_clean_world
from accord.world.scene import CLEAN, IMPERFECT, make_clips
from tiny_models import gates
from tiny_models.card import Measured, contact_sheet, spectrogram_sheet, write_card
from tiny_models.codecs import build_audio_vae, build_video_vae, build_vocoder, log_mel, video_to_tensor
from tiny_models.pipeline import build_pipeline, load_pipeline, save_pipeline
from tiny_models.polish import polish_audio, polish_video
from tiny_models.pretrain import (
    Corpus,
    Denoiser,
    Recipe,
    Texts,
    Trainer,
    clean_corpus,
    coupling_probe,
    encode_captions,
    imperfect_corpus,
)

Progress = Callable[[str], None]

SHARES = {"video decoder": 0.14, "audio decoder": 0.10, "stage one": 0.60, "stage two": 0.16}
PROBES = {"video at .85/.85": (0.85, 0.85, 0), "audio at .85/.85": (0.85, 0.85, 1), "audio at .1/.85": (0.1, 0.85, 1)}
EVALUATION_CLIPS = 192


def untrained_pipeline(seed: int, clips: int = 960) -> Any:
    """The complete pipeline with closed-form codecs and an untrained transformer; takes a few seconds."""
    half = [*make_clips(clips // 2, seed, CLEAN), *make_clips(clips // 2, seed + 1, IMPERFECT)]
    vae = build_video_vae(video_to_tensor(np.stack([clip.video for clip in half])))
    audio_vae = build_audio_vae(log_mel(torch.from_numpy(np.stack([clip.audio for clip in half]))))
    return build_pipeline(vae, audio_vae, build_vocoder(), seed)


def _compile_blocks(denoiser: Denoiser, say: Progress) -> None:
    """Compile the transformer blocks one by one, which takes a minute and makes a step about 1.6 times as fast."""
    for block in denoiser.transformer.transformer_blocks:
        block.compile(dynamic=False)
    say("the first step compiles the transformer blocks: about a minute")


def probe_all(denoiser: Denoiser, probe: Corpus, texts: Texts) -> dict[str, float]:
    """The coupling probe at the noise levels that the card reports."""
    return {
        name: coupling_probe(denoiser, probe, texts, (first, second))[which]
        for name, (first, second, which) in PROBES.items()
    }


def save_statistics(corpus: Corpus, path: Path) -> None:
    """Fit and write the statistics of the clean world that `heldout` compares with."""
    save_clean_world({"video": fit_statistics(corpus.video), "audio": fit_statistics(corpus.audio)}, path)


def certify(
    directory: Path,
    stage_one: Path,
    statistics: Path,
    minutes: dict[str, float],
    steps: dict[str, int],
    seed: int,
    notes: tuple[str, ...] = (),
) -> Measured:
    """Measure the shipped directory and the clean model beside it, write card and pictures, return what was found."""
    shipped, clean_model = load_pipeline(directory), load_pipeline(stage_one)
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
    recipe = Recipe(seed=seed, clean_clips=64)
    coupling = {}
    for name, pipeline in (("stage one", clean_model), ("shipped", shipped)):
        _, probe = clean_corpus(pipeline, recipe)
        denoiser = Denoiser(pipeline.connectors, pipeline.transformer)
        coupling[name] = probe_all(denoiser, probe, encode_captions(pipeline))
    passed = gates.verdict(coupling["shipped"]["audio at .85/.85"], rows["stage one samples"], rows["shipped samples"])
    measured = Measured(rows, coupling, passed, minutes, steps, notes)
    draw(samples, clean_samples, directory)
    write_card(directory, measured)
    return measured


def draw(samples: gates.ClipSet, clean_samples: gates.ClipSet, directory: Path) -> None:
    """The pictures of the card, from the first samples of captions that differ in colour and sound; not chosen."""

    def pick(clips: gates.ClipSet, rows: list[int]) -> gates.ClipSet:
        return gates.ClipSet([clips.prompts[row] for row in rows], clips.video[rows], clips.audio[rows])

    shown = pick(samples, [0, 5, 10, 15, 16, 21, 26, 31])
    contact_sheet(shown, directory / "contact_sheet.png")
    spectrogram_sheet(shown, directory / "spectrograms.png")
    contact_sheet(pick(clean_samples, [0, 5, 26, 31]), directory / "contact_sheet_stage_one.png")


def pretrain_tiny(
    out_dir: Path, *, budget_minutes: float = 45.0, seed: int = 0, threads: int = 2, say: Progress = print
) -> Measured:
    """Build, train, measure and write the tiny model.

    Writes `out_dir/tiny-ltx2` (the pipeline directory with its card), `out_dir/clean_world.safetensors` and, under
    `out_dir/work`, the clean model of stage one and checkpoints of every minute.

    Args:
        out_dir: where to write; made if missing.
        budget_minutes: wall clock for training; building, encoding, compiling and measuring add about eight minutes.
        seed: everything random follows from it.
        threads: CPU threads for torch.
        say: receives a line of progress every half minute or so.

    Raises:
        ValueError: if the budget is not positive.
    """
    if not budget_minutes > 0.0:
        raise ValueError(f"budget_minutes must be positive, got {budget_minutes}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    minutes = {name: share * budget_minutes for name, share in SHARES.items()}
    directory, work = out_dir / "tiny-ltx2", out_dir / "work"
    started = time.monotonic()
    say("building the codecs")
    save_pipeline(untrained_pipeline(seed), directory)
    pipeline = load_pipeline(directory)  # as rounded on disk, so that latents match the shipped encoders
    polish_video(pipeline.vae, seed + 60, minutes["video decoder"], say)
    polish_audio(pipeline.audio_vae, seed + 50, minutes["audio decoder"], say)
    recipe = Recipe(seed=seed)
    say("encoding the clips")
    clean, probe = clean_corpus(pipeline, recipe)
    save_statistics(clean, out_dir / "clean_world.safetensors")
    denoiser = Denoiser(pipeline.connectors, pipeline.transformer)
    _compile_blocks(denoiser, say)
    trainer = Trainer(denoiser, encode_captions(pipeline), recipe, say, work / "stage-one")
    trainer.train(clean, probe, minutes["stage one"], recipe.learning_rate, "stage one")
    steps = {"stage one": trainer.steps}
    trainer.use_average()
    save_pipeline(pipeline, work / "stage-one-ltx2")
    trainer.checkpoint = work / "stage-two"
    trainer.train(imperfect_corpus(pipeline, recipe), probe, minutes["stage two"], recipe.fine_tune_rate, "stage two")
    trainer.use_average()
    save_pipeline(pipeline, directory)
    steps["stage two"] = trainer.steps - steps["stage one"]
    minutes["all"] = (time.monotonic() - started) / 60.0
    say("measuring")
    stage_one, statistics = work / "stage-one-ltx2", out_dir / "clean_world.safetensors"
    measured = certify(directory, stage_one, statistics, minutes, steps, seed)
    for name, passed in measured.gates.items():
        say(f"gate {'passed' if passed else 'FAILED'}: {name}")
    return measured
