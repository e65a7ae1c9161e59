"""Tuning of the two decoders behind the frozen closed-form encoders.

The encoders stay exactly as built: the transformer learns their latents, so nothing here can invalidate it, and this
step may run before, beside or after pretraining. Both decoders see latents with a little noise, since sampled latents
are never exact.

Shapes: B batch, F frames, A mel frames, M mel bands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accord.world.scene import CLEAN, IMPERFECT, make_clips
from tiny_models.codecs import MEL_FLOOR, log_mel, video_to_tensor

Progress = Callable[[str], None]
LATENT_NOISE = 0.05


def _minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60.0


def _fit(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    count: int,
    batch: int,
    minutes: float,
    rate: float,
    say: Progress,
    name: str,
) -> None:
    """Minimise `loss(rows)` over random rows for so many minutes: Adam, short warm-up, cosine decay to 2 %."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(11)
    started = spoken = time.monotonic()
    total, steps, seen = 0.0, 0, 0
    while (passed := _minutes_since(started)) < minutes:
        decay = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * passed / minutes))
        for group in optimiser.param_groups:
            group["lr"] = rate * decay * min(1.0, (steps + 1) / 50)
        value = loss(torch.randint(count, (batch,), generator=generator))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        steps, seen, total = steps + 1, seen + 1, total + float(value.detach())
        if time.monotonic() - spoken > 30.0:
            say(f"{name}: step {steps}, loss {total / seen:.4f}, {minutes - _minutes_since(started):.1f} min left")
            total, seen, spoken = 0.0, 0, time.monotonic()


def _jitter(latents: Tensor, deviation: Tensor) -> Tensor:
    """Latents with Gaussian noise of `LATENT_NOISE` in normalised units; `deviation` broadcasts to the latents."""
    return latents + LATENT_NOISE * deviation * torch.randn_like(latents)


def polish_audio(vae: Any, seed: int, minutes: float, say: Progress, clips: int = 2400) -> None:
    """Train the audio decoder to give back the log-mel picture: L1 plus half the squared error, in nepers."""
    half = [*make_clips(clips // 2, seed, CLEAN), *make_clips(clips // 2, seed + 1, IMPERFECT)]
    mel = log_mel(torch.from_numpy(np.stack([clip.audio for clip in half])))
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in mel.split(64)])
        vae.decoder.conv_out.conv.bias.fill_(MEL_FLOOR + 1.0)
    channels, bands = latents.shape[1], latents.shape[3]
    deviation = vae.latents_std.view(channels, 1, bands)

    def loss(rows: Tensor) -> Tensor:
        error = vae.decoder(_jitter(latents[rows], deviation)) - mel[rows]
        return error.abs().mean() + 0.5 * error.square().mean()

    parameters = list(vae.decoder.parameters())
    _fit(parameters, loss, len(mel), 16, minutes, 2e-3, say, "audio decoder")


def polish_video(vae: Any, seed: int, minutes: float, say: Progress, clips: int = 1200) -> None:
    """Tune the video decoder: absolute (crisp edges) plus squared pixel error, five times heavier where the picture
    differs from the empty room."""
    half = [*make_clips(clips // 2, seed, CLEAN), *make_clips(clips // 2, seed + 1, IMPERFECT)]
    frames = torch.from_numpy(np.stack([clip.video for clip in half]))
    latents = torch.cat(
        [vae.encode(video_to_tensor(part.numpy())).latent_dist.mode().detach() for part in frames.split(64)]
    )
    deviation = vae.latents_std.view(-1, 1, 1, 1)
    room = video_to_tensor(frames[:600].numpy()).median(dim=2, keepdim=True).values.median(dim=0, keepdim=True).values

    def loss(rows: Tensor) -> Tensor:
        truth = video_to_tensor(frames[rows].numpy())
        weight = 1.0 + 4.0 * ((truth - room).abs().amax(1, keepdim=True) > 0.15).float()
        error = vae.decoder(_jitter(latents[rows], deviation), None) - truth
        return (weight * (error.abs() + 2.0 * error.square())).mean() / weight.mean()

    parameters = list(vae.decoder.parameters())
    _fit(parameters, loss, len(frames), 8, minutes, 1e-3, say, "video decoder")
