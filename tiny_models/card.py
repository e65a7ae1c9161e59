"""The model card of the tiny model: two pictures and a README with the measured quality.

Shapes: N clips, F frames, H, W, S audio samples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from accord.world.measure import audio_onsets, visual_contacts
from accord.world.scene import FPS, SAMPLE_RATE
from tiny_models.gates import LEAST_ACCURACY, LEAST_COUPLING, LEAST_SYNC_GAP, SAMPLING_STEPS, ClipSet

_MARGIN, _ZOOM = 14, 2
_PAPER, _INK, _SEEN, _HEARD = (255, 255, 255), (20, 20, 20), (230, 60, 30), (40, 190, 255)


@dataclass(frozen=True)
class Measured:
    """What the card reports: one row of measures for each set of clips, the coupling probe, the gates and the times."""

    rows: dict[str, dict[str, float]]
    coupling: dict[str, dict[str, float]]
    gates: dict[str, bool]
    minutes: dict[str, float]
    steps: dict[str, int]
    notes: tuple[str, ...] = ()


def contact_sheet(clips: ClipSet, path: Path, every: int = 2) -> None:
    """One row a clip, every second frame at twice its size, the caption above.

    Ticks mark the contacts found (red, above the frames) and the onsets heard (blue, below them) along the time axis.
    """
    videos = np.stack([clip.video_FHWC for clip in clips.clips])
    frames = videos[:, ::every].repeat(_ZOOM, axis=2).repeat(_ZOOM, axis=3)
    count, columns, height, width = frames.shape[:4]
    row = height + _MARGIN + 10
    sheet = Image.new("RGB", (columns * (width + 1), count * row), _PAPER)
    draw = ImageDraw.Draw(sheet)
    scale = (width + 1) / every * FPS
    for index, clip in enumerate(clips.clips):
        top = index * row + _MARGIN
        draw.text((2, top - _MARGIN), clips.prompts[index].prompt_av, fill=_INK)
        for column in range(columns):
            sheet.paste(Image.fromarray(frames[index, column]), (column * (width + 1), top + 4))
        for times, colour, y in (
            (visual_contacts(clip.video_FHWC), _SEEN, top),
            (audio_onsets(clip.audio_CS[0]), _HEARD, top + height + 5),
        ):
            for time in times:
                x = int(time * scale + width / 2 / every)
                draw.rectangle((x - 2, y, x + 2, y + 3), fill=colour)
    sheet.save(path, optimize=True)


def _spectrogram(audio: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A grey picture [128, T] of the spectrum to 4 kHz, 60 dB range, dark is loud."""
    size, hop = 512, 128
    padded = np.pad(audio, (size // 2, size // 2))
    index = np.arange(size)[None] + hop * np.arange(1 + (len(padded) - size) // hop)[:, None]
    power = np.abs(np.fft.rfft(padded[index] * np.hanning(size), axis=1)) / (size / 4)
    level = 20.0 * np.log10(np.maximum(power[:, : size // 4].T[::-1], 1e-3))
    return np.asarray(255.0 * np.clip(-level / 60.0, 0.0, 1.0), dtype=np.uint8)


def spectrogram_sheet(clips: ClipSet, path: Path, columns: int = 4) -> None:
    """Spectrograms to 4 kHz side by side, captions above; red ticks mark the contacts seen in the picture."""
    pictures = [_spectrogram(clip.audio_CS[0]) for clip in clips.clips]
    height, width = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 6), rows * (height + _MARGIN + 8)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x = (index % columns) * (width + 6)
        y = (index // columns) * (height + _MARGIN + 8)
        draw.text((x + 2, y), clips.prompts[index].prompt_av.removeprefix("a "), fill=_INK)
        sheet.paste(Image.fromarray(picture).convert("RGB"), (x, y + _MARGIN + 5))
        for time in visual_contacts(clips.clips[index].video_FHWC):
            tick = x + int(time * SAMPLE_RATE / 128)
            draw.rectangle((tick - 1, y + _MARGIN, tick + 1, y + _MARGIN + 4), fill=_SEEN)
    sheet.save(path, optimize=True)


def _table(rows: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| measure | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    for name in names:
        cells = [f"{row[name]:.3g}" if name in row else "" for row in rows.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_INTRO = """# The tiny audio-video model

A complete `LTX2Pipeline` directory (official diffusers and transformers classes, small configurations) that makes
2-second clips of the built-in world: a coloured ball that bounces or slides, with a spark and a struck sound at each
contact. 25 frames of 32x32 at 12 fps, mono audio at 16 kHz. It exists so that a whole post-training job runs on a
laptop; it knows nothing else.

```python
import torch
from diffusers import LTX2Pipeline

pipeline = LTX2Pipeline.from_pretrained("accord/world/pretrained/tiny-ltx2", dtype=torch.float32)
clip = pipeline(
    "a red ball bouncing with a bell sound",
    height=32,
    width=32,
    num_frames=25,
    frame_rate=12.0,
    num_inference_steps=8,
    max_sequence_length=16,
    output_type="np",
    guidance_scale=1.0,
    audio_guidance_scale=1.0,
    stg_scale=0.0,
    audio_stg_scale=0.0,
    modality_scale=1.0,
    audio_modality_scale=1.0,
    guidance_rescale=0.0,
    audio_guidance_rescale=0.0,
    spatio_temporal_guidance_blocks=None,
)
```

All nine guidance values must be given: the pipeline's defaults switch several kinds of guidance on.
Load it in float32. The weights are stored in bfloat16.
"""

_RECIPE = """## Recipe

`accord pretrain-tiny` repeats it. Captions: 4 colours x 2 motions x 4 sounds; 24 for training, 8 held out for
evaluation of later jobs (the base has seen clips of all 32).

1. **Codecs** are built, not trained: principal components written into the encoders of the two autoencoders (16x16
   patches of 4 frames on 40 channels; 4x4 blocks of the log-mel picture on 4 channels) and an oscillator bank written
   into the vocoder. Only the two decoders are tuned, behind the frozen encoders.
2. **Text**: a word tokenizer, a random frozen two-layer Gemma 3; the connectors train with the transformer.
3. **Stage one**: clean, fully synchronous clips; independent noise levels for video and audio (45 % independent, 20 %
   nearly clean video, 10 % nearly clean audio, 25 % equal). This is what makes the two modalities look at each other.
4. **Stage two**: a short fine-tune on imperfect clips (sound track shifted by 0.12 to 0.35 s in 40 % of the clips, hiss
   in 60 %, flicker in 45 %, wrong colour in 25 %, wrong sound in 25 %), equal and independent noise levels as before.
   The shipped model therefore makes mistakes on purpose: they are what reinforcement learning has to mend.
"""


_LIMITS = (
    "The pictures are the first samples of their captions, not chosen ones.",
    "Balls are soft blobs with faint colour noise around them: 40 channels for four 16x16 patches are a lossy codec. "
    "Shapes would not be readable, so the captions have none.",
    "Noise in the sound comes out as a buzz of sixteen fixed tones, because the vocoder is an oscillator bank.",
    "Distances to the clean world are biased upwards for few clips: clean clips themselves do not read 0.",
    "`sync` reaches about 0.75 above shuffled pairs at best: contacts repeat every 0.75 s or 1 s, so that two clips of "
    "the same caption often agree by chance.",
)


def write_card(directory: Path, measured: Measured) -> None:
    """Write `README.md` and `measured.json` into the pipeline directory."""
    least = ", ".join(f"{name} {value:.0%}" for name, value in LEAST_ACCURACY.items())
    gates = "\n".join(f"- {'pass' if passed else '**FAIL**'}: {name}" for name, passed in measured.gates.items())
    coupling = "\n".join(
        f"- {model}: " + ", ".join(f"{name} {value:+.1%}" for name, value in values.items())
        for model, values in measured.coupling.items()
    )
    minutes = ", ".join(f"{name} {value:.1f} min" for name, value in measured.minutes.items())
    steps = ", ".join(f"{name} {value} steps" for name, value in measured.steps.items())
    notes = "\n".join(f"- {note}" for note in (*_LIMITS, *measured.notes))
    text = f"""{_INTRO}
{_RECIPE}
Time: {minutes}. {steps}.

## Gates

The gates ask for a coupling of at least {LEAST_COUPLING:.0%} (audio at .85/.85), a sync gap of at least
{LEAST_SYNC_GAP} of the clean model, and of both models these captions followed at least: {least}.

{gates}

Coupling: how much worse a modality is denoised beside the other modality of another clip with the same caption.

{coupling}

## Measured

Samples: {SAMPLING_STEPS} Euler steps, no guidance of any kind. `sync` is the soft F1 of contacts seen and onsets heard
(80 ms); it means something only against `shuffled pairs`, whose audio belongs to another clip of the same caption.

{_table(measured.rows)}

![Frames of shipped samples](contact_sheet.png)

Every second frame; red ticks are contacts seen, blue ticks onsets heard.

![Spectrograms of shipped samples](spectrograms.png)

Sound of the same samples to 4 kHz; red ticks are contacts seen.

![Frames of stage one samples](contact_sheet_stage_one.png)

For comparison, samples of the clean model after stage one: what the shipped model could still do before it learnt to
make mistakes.

## What to expect

{notes}
"""
    (directory / "README.md").write_text(text, encoding="utf-8")
    (directory / "measured.json").write_text(json.dumps(vars(measured), indent=1) + "\n", encoding="utf-8")
