"""Closed-form codecs of the built-in world, inside the official LTX-2 classes.

Nothing here is trained from scratch: the encoders are principal component projections written into the weights of
`AutoencoderKLLTX2Video` and `AutoencoderKLLTX2Audio`, and the vocoder is a bank of windowed cosines written into
`LTX2Vocoder`. Two devices make that possible. The space-to-depth shortcuts of the samplers lose nothing, so their
convolutions may be zero; and one channel that carries a large constant turns an RMS normalisation into a fixed scale
and keeps SiLU in its linear part, `silu(y) ~ y / 2`. Only the decoders are tuned afterwards (`polish.py`).

Shapes: B batch, F frames, H, W, S audio samples, A mel frames (10 ms), M mel bands, L latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

from accord.world.scene import AUDIO_SAMPLES, CLEAN, IMPERFECT, SAMPLE_RATE, WorldClip, make_clips

VIDEO_LATENTS = 40
VIDEO_PATCH = 16
AUDIO_LATENTS = 4
MEL_BANDS = 16
MEL_HOP = 160
MEL_WINDOW = 400
MEL_FLOOR = float(np.log(1e-3))
MEL_TOP_HZ = 6000.0
CONSTANT = 4000.0
DECODER_CONSTANT = 1000.0
TINY_LOG_VARIANCE = -12.0


def codec_clips(count: int, seed: int) -> list[WorldClip]:
    """What codecs are fitted on: clean clips, then as many imperfect ones."""
    return [*make_clips(count // 2, seed, CLEAN), *make_clips(count // 2, seed + 1, IMPERFECT)]


# ---------------------------------------------------------------- sound as log-mel pictures


def log_mel(audio: Tensor) -> Tensor:
    """Log amplitude in mel bands: float [B, S] at 16 kHz to [B, 1, A, M], natural log, floor log(1e-3).

    Frame a is centred on sample `a * 160 + 80`; a full-scale sine in the middle of a band reads about 0.
    """
    filters = mel_filter_bank(MEL_WINDOW // 2 + 1, MEL_BANDS, 0.0, MEL_TOP_HZ, SAMPLE_RATE)  # triangles with peak 1
    window = torch.hann_window(MEL_WINDOW)
    pad = MEL_WINDOW // 2 - MEL_HOP // 2
    padded = nn.functional.pad(audio, (pad, pad + MEL_HOP))
    spectrum = torch.stft(padded, MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True)
    power = (spectrum.abs() * (2.0 / window.sum())).square()[..., : audio.shape[-1] // MEL_HOP]
    amplitude = torch.einsum("fm,bfa->bam", torch.from_numpy(filters).float(), power).sqrt()
    return amplitude.clamp_min(float(np.exp(MEL_FLOOR))).log()[:, None]


# ---------------------------------------------------------------- small tools on weights


def _silence(module: nn.Module) -> None:
    """Set every weight and bias below a module to zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def _principal(rows: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], orthonormal basis [K, D] by falling variance, and standard deviations [K] of rows [N, D]."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    order = torch.argsort(values, descending=True)[:components]
    return mean, vectors[:, order].T.float().contiguous(), values[order].clamp_min(0).sqrt().float()


# ---------------------------------------------------------------- video


def video_to_tensor(video: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [B, F, H, W, 3] into float [B, 3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def new_video_vae() -> Any:
    """The video VAE with its layout and untrained weights: latents [B, 40, 7, 2, 2] for [B, 3, 25, 32, 32]."""
    width = VIDEO_LATENTS
    vae: Any = AutoencoderKLLTX2Video(
        latent_channels=width,
        block_out_channels=(2 * width, 4 * width),
        down_block_types=("LTX2VideoDownBlock3D", "LTX2VideoDownBlock3D"),
        decoder_block_out_channels=(2 * width, 4 * width),
        layers_per_block=(0, 0, 0),
        decoder_layers_per_block=(1, 1, 0),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("temporal", "temporal"),
        upsample_type=("temporal", "temporal"),
        upsample_residual=(True, True),
        upsample_factor=(2, 2),
        patch_size=VIDEO_PATCH,
        encoder_causal=True,
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=VIDEO_PATCH,
        temporal_compression_ratio=4,
    )
    return vae.eval()


def _patches(vae: Any, video: Tensor) -> Tensor:
    """Pixels in the channel order of the encoder's first convolution: [B, 3, F, H, W] to [B, 3 p p, F, H/p, W/p]."""
    patch = vae.config.patch_size
    batch, channels, frames, height, width = video.shape
    split = video.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return split.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _channels_last(features: Tensor) -> Tensor:
    """[B, C, ...] to rows [N, C]."""
    return features.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def build_video_vae(video: Tensor) -> Any:
    """Write a two-stage principal component codec into the video VAE.

    Stage one projects each 16x16 patch of a frame on 39 components (plus the constant), stage two the four frames of a
    latent on 40 components. `latents_std` holds the square root of each component's deviation, scaled so that the
    normalised latents have unit RMS over all channels: strong components stay stronger, as in natural latents.

    Args:
        video: float [B, 3, F, H, W] in [-1, 1]; some hundred clips are enough.
    """
    vae, width = new_video_vae(), VIDEO_LATENTS
    _silence(vae.encoder)
    for block in vae.decoder.up_blocks:
        _silence(block.upsamplers)
    _silence(vae.decoder.conv_in)
    _silence(vae.decoder.conv_out)
    mean, basis, _ = _principal(_channels_last(_patches(vae, video)), width - 1)
    conv = vae.encoder.conv_in.conv
    conv.weight[: width - 1, :, 2, 1, 1] = basis
    conv.bias[: width - 1] = -(basis @ mean)
    conv.bias[width - 1] = CONSTANT
    features = torch.cat([_features(vae, part) for part in video.split(64)])
    varying = torch.arange(4 * width) < 4 * (width - 1)
    rows = _channels_last(features)
    feature_mean, feature_basis, deviation = _principal(rows[:, varying], width)
    scale = 2.0 * CONSTANT / width**0.5
    out = vae.encoder.conv_out.conv
    out.weight[:width, varying, 2, 1, 1] = feature_basis * scale
    out.bias[:width] = -(feature_basis @ feature_mean)
    out.bias[width] = TINY_LOG_VARIANCE
    soft = deviation.clamp_min(1e-3).sqrt()
    vae.latents_std.copy_(soft * soft.square().mean().sqrt())
    _write_video_decoder(vae, mean, basis, feature_mean, feature_basis)
    return vae


def _features(vae: Any, video: Tensor) -> Tensor:
    """The encoder up to its last normalisation, [B, 4 L, F', H', W']; channels c * 4 + place of the frame."""
    hidden = vae.encoder.conv_in(_patches(vae, video), causal=True)
    for block in vae.encoder.down_blocks:
        hidden = block(hidden, causal=True)
    return hidden


def _write_video_decoder(vae: Any, mean: Tensor, basis: Tensor, feature_mean: Tensor, feature_basis: Tensor) -> None:
    """Mirror the encoder: latents to features by the transposed basis, features to pixels by the other one."""
    width = VIDEO_LATENTS
    inside = vae.decoder.conv_in.conv
    inside.weight[: 4 * (width - 1), :, 1, 1, 1] = feature_basis.T
    inside.bias[: 4 * (width - 1)] = feature_mean
    inside.bias[4 * (width - 1) :] = DECODER_CONSTANT
    for block in [vae.decoder.mid_block, *vae.decoder.up_blocks]:
        for resnet in block.resnets:
            _silence(resnet.conv2)
            channels = resnet.conv1.conv.weight.shape[1]
            resnet.conv1.conv.weight[:, channels - channels // width :] = 0.0
    scale = 2.0 * DECODER_CONSTANT / width**0.5
    out = vae.decoder.conv_out.conv
    # The decoder un-patches in the same channel order as `_patches`.
    out.weight[:, : width - 1, 1, 1, 1] = basis.T * scale
    out.bias.copy_(mean)


# ---------------------------------------------------------------- audio


def new_audio_vae() -> Any:
    """The audio VAE with its layout: latents [B, 4, 52, 4] for log-mel [B, 1, 205, 16]."""
    vae: Any = AutoencoderKLLTX2Audio(
        base_channels=AUDIO_LATENTS * MEL_BANDS // 4,
        output_channels=1,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        in_channels=1,
        resolution=MEL_BANDS,
        latent_channels=AUDIO_LATENTS,
        norm_type="pixel",
        causality_axis="height",
        sample_rate=SAMPLE_RATE,
        mel_hop_length=MEL_HOP,
        mel_bins=MEL_BANDS,
    )
    return vae.eval()


def _audio_blocks(encoder: Any) -> Iterable[Any]:
    """The residual blocks of the audio encoder from input to output."""
    for stage in encoder.down:
        yield from stage.block
    yield encoder.mid.block_1
    yield encoder.mid.block_2


@torch.no_grad()
def build_audio_vae(mel: Tensor) -> Any:
    """Write a principal component encoder of 4x4 log-mel blocks into the audio VAE; its decoder stays untrained.

    Args:
        mel: log-mel [B, 1, A, M] of clean and imperfect clips, as `log_mel` gives them.
    """
    vae = new_audio_vae()
    encoder = vae.encoder
    _silence(encoder)
    last = encoder.conv_in.conv.weight.shape[0] - 1
    encoder.conv_in.conv.weight[0, 0, 2, 1] = 1.0
    encoder.conv_in.conv.bias[0] = -MEL_FLOOR
    encoder.conv_in.conv.bias[last] = CONSTANT
    for used, stage in ((1, encoder.down[0]), (4, encoder.down[1])):
        for channel in range(used):
            for place, (row, column) in enumerate(((1, 0), (1, 1), (2, 0), (2, 1))):
                stage.downsample.conv.weight[channel * 4 + place, channel, row, column] = 1.0
        stage.downsample.conv.weight[-1, -1, 2, 0] = 1.0
    for block in _audio_blocks(encoder):
        if hasattr(block, "nin_shortcut"):
            shortcut = block.nin_shortcut.conv.weight
            for channel in range(shortcut.shape[1] - 1):
                shortcut[channel, channel] = 1.0
            shortcut[-1, -1] = 1.0
    _fit_audio_head(vae, mel)
    return vae


def _audio_features(vae: Any, mel: Tensor) -> Tensor:
    """The audio encoder up to its last normalisation, [B, 64, A / 4, M / 4]."""
    encoder = vae.encoder
    hidden = encoder.conv_in(mel)
    for level, stage in enumerate(encoder.down):
        for block in stage.block:
            hidden = block(hidden)
        if level < len(encoder.down) - 1:
            hidden = stage.downsample(hidden)
    return encoder.mid.block_2(encoder.mid.block_1(hidden))


def _fit_audio_head(vae: Any, mel: Tensor) -> None:
    """Fit the output convolution of the audio encoder and the statistics of its latents."""
    features = torch.cat([_audio_features(vae, part) for part in mel.split(64)])
    _, basis, _ = _principal(_channels_last(features)[:, :16], AUDIO_LATENTS)
    scale = 2.0 * CONSTANT / features.shape[1] ** 0.5
    out = vae.encoder.conv_out.conv
    out.weight[:AUDIO_LATENTS, :16, 2, 1] = basis * scale
    out.bias[AUDIO_LATENTS:] = TINY_LOG_VARIANCE
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in mel.split(64)])
    packed = latents.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    vae.latents_mean.copy_(packed.mean(0))
    soft = packed.std(0).clamp_min(1e-3).sqrt()
    vae.latents_std.copy_(soft * soft.square().mean().sqrt())


# ---------------------------------------------------------------- vocoder

_HINGES = (-5.0, -4.0, -3.2, -2.5, -1.9, -1.4, -0.9, -0.4)


def _carriers_hz() -> NDArray[np.float64]:
    """One distinct multiple of 100 Hz for each mel band: at a hop of 10 ms such tones run on without a break."""
    carriers: list[float] = []
    for centre in np.asarray(mel_to_hertz(np.linspace(0.0, hertz_to_mel(MEL_TOP_HZ), MEL_BANDS + 2)))[1:-1]:
        lowest = carriers[-1] + 100.0 if carriers else 100.0
        carriers.append(max(lowest, round(float(centre) / 100.0) * 100.0))
    return np.asarray(carriers)


def _hinge_slopes() -> Tensor:
    """Slopes of the eight hinges so that their sum follows `exp` from log amplitude -5 to about +0.3."""
    knots = np.asarray([*_HINGES, 0.3])
    values = np.concatenate([[0.0], np.exp(knots[1:])])
    slopes = np.diff(values) / np.diff(knots)
    return torch.from_numpy(np.diff(np.concatenate([[0.0], slopes]))).float()


@torch.no_grad()
def build_vocoder(sharpening: float = 0.45) -> Any:
    """Write an oscillator bank into the vocoder: log-mel [B, 1, A, M] to audio [B, 1, 160 A] at 16 kHz.

    Layer by layer: eight hinges a band approximate `exp`; `sharpening` takes a part of both neighbours away from each
    band; a transposed convolution plays one Hann-windowed cosine a band, overlapping by half. The pair of channels with
    opposite signs makes the last leaky ReLU linear. Noise comes out as a soft buzz of the sixteen carriers.
    """
    hinges = len(_HINGES)
    vocoder: Any = LTX2Vocoder(
        in_channels=MEL_BANDS,
        hidden_channels=hinges * MEL_BANDS,
        out_channels=1,
        upsample_kernel_sizes=[1, 1, 2 * MEL_HOP],
        upsample_factors=[1, 1, MEL_HOP],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        leaky_relu_negative_slope=0.0,
        final_act_fn="clamp",
        output_sampling_rate=SAMPLE_RATE,
    ).eval()
    _silence(vocoder)
    slopes = _hinge_slopes()
    for band in range(MEL_BANDS):
        for index, hinge in enumerate(_HINGES):
            channel = band * hinges + index
            vocoder.conv_in.weight[channel, band, 3] = 1.0
            vocoder.conv_in.bias[channel] = -hinge
            vocoder.upsamplers[0].weight[channel, band, 0] = slopes[index]
        for other in range(max(0, band - 1), min(MEL_BANDS, band + 2)):
            vocoder.upsamplers[1].weight[other, band, 0] = 1.0 if other == band else -sharpening
    time = (torch.arange(2 * MEL_HOP) - MEL_HOP // 2) / SAMPLE_RATE
    window = torch.hann_window(2 * MEL_HOP)
    for band, carrier in enumerate(_carriers_hz()):
        wave = window * torch.cos(2.0 * torch.pi * carrier * time)
        vocoder.upsamplers[2].weight[band, 0] = wave
        vocoder.upsamplers[2].weight[band, 1] = -wave
    vocoder.conv_out.weight[0, 0, 3] = 1.0 / 1.01
    vocoder.conv_out.weight[0, 1, 3] = -1.0 / 1.01
    return vocoder


assert AUDIO_SAMPLES % MEL_HOP == 0, "a clip holds whole mel frames"
