"""Tuning of the two decoders behind the frozen closed-form encoders.

The encoders stay exactly as built: the transformer learns their latents, so nothing here can invalidate it, and this
step may run before, beside or after pretraining. Both decoders see latents with a little noise, since sampled latents
are never exact.

Shapes: B batch, F frames, A mel frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny_models.codecs import MEL_FLOOR, codec_clips, log_mel, video_to_tensor
from tiny_models.descent import Say, descend

LATENT_NOISE = 0.05


def _fit(
    decoder: Any,
    loss: Callable[[Tensor], Tensor],
    count: int,
    batch: int,
    minutes: float,
    rate: float,
    say: Say,
    name: str,
) -> None:
    """Minimise `loss(rows)` over random rows for so many minutes."""
    generator = torch.Generator().manual_seed(11)

    def drawn() -> Tensor:
        return loss(torch.randint(count, (batch,), generator=generator))

    for left, mean in descend(list(decoder.parameters()), drawn, minutes, rate, warm_up=50, least=0.02):
        if mean is not None:
            say(f"{name}: loss {mean:.4f}, {left:.1f} min left")


def _jitter(latents: Tensor, deviation: Tensor) -> Tensor:
    """Latents with Gaussian noise of `LATENT_NOISE` in normalised units; `deviation` broadcasts to the latents."""
    return latents + LATENT_NOISE * deviation * torch.randn_like(latents)


def polish_audio(vae: Any, seed: int, minutes: float, say: Say, clips: int = 2400) -> None:
    """Train the audio decoder to give back the log-mel picture: L1 plus half the squared error, in nepers."""
    mel = log_mel(torch.from_numpy(np.stack([clip.audio for clip in codec_clips(clips, seed)])))
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in mel.split(64)])
        vae.decoder.conv_out.conv.bias.fill_(MEL_FLOOR + 1.0)
    channels, bands = latents.shape[1], latents.shape[3]
    deviation = vae.latents_std.view(channels, 1, bands)

    def loss(rows: Tensor) -> Tensor:
        error = vae.decoder(_jitter(latents[rows], deviation)) - mel[rows]
        return error.abs().mean() + 0.5 * error.square().mean()

    _fit(vae.decoder, loss, len(mel), 16, minutes, 2e-3, say, "audio decoder")


def polish_video(vae: Any, seed: int, minutes: float, say: Say, clips: int = 1200) -> None:
    """Tune the video decoder: absolute (crisp edges) plus squared pixel error, five times heavier where the picture
    differs from the empty room."""
    frames = torch.from_numpy(np.stack([clip.video for clip in codec_clips(clips, seed)]))
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

    _fit(vae.decoder, loss, len(frames), 8, minutes, 1e-3, say, "video decoder")
