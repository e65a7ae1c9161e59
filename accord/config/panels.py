"""Sets of rewards by name, after what is published: what of each panel is measured here, by which reward, and what not.

A panel brings its rewards that need no weights. Those that need some are measured when the job names them with a
`path`, and else told as missing. A stand-in is of its own scale: its numbers are not those of the published metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, cast

PanelName = Literal["accord", "javis", "vbench", "audiocanvas"]


@dataclass(frozen=True, slots=True)
class Panel:
    """What a panel measures."""

    light: Mapping[str, str]
    """Rewards without weights, and what each stands for."""
    weighed: Mapping[str, str]
    """Rewards that need weights of their own, and the published metric that each is."""
    lacks: tuple[str, ...]
    """Published metrics that nothing here measures."""


PANELS: Mapping[PanelName, Panel] = {
    "accord": Panel(
        light={
            "sync": "sound in step with the picture", "stereo_place": "sound where the picture moves",
            "sound": "clean sound", "picture": "sharp, well lit pictures", "motion": "plausible motion",
            "consistency": "what is seen stays what it is", "text_audio": "sound as the prompt says",
            "text_video": "colour and motion as the prompt says", "temporal_flicker": "no flicker",
            "motion_smoothness": "smooth motion", "dynamic_degree": "how much moves",
            "audio_vendi": "clips of a prompt that sound different", "video_vendi": "that look different",
        },
        weighed={},
        lacks=(),
    ),
    "javis": Panel(
        light={
            "sync": "stand-in for AV-Align", "text_audio": "stand-in for CLAP", "text_video": "stand-in for CLIP",
        },
        weighed={
            "videoalign": "visual and motion quality (VideoAlign)", "audiobox": "audio quality (AudioBox)",
            "clap": "CLAP", "clip_score": "CLIP", "desync": "DeSync (Synchformer)",
            "imagebind_tv": "TV-ImageBind", "imagebind_ta": "TA-ImageBind", "imagebind_av": "AV-ImageBind",
        },
        lacks=("FVD", "KVD", "FAD", "CAVP", "AVHScore", "JavisScore"),
    ),
    "vbench": Panel(
        light={
            "consistency": "stand-in for subject and background consistency", "temporal_flicker": "temporal flickering",
            "motion_smoothness": "stand-in for motion smoothness", "dynamic_degree": "stand-in for dynamic degree",
            "picture": "stand-in for imaging quality", "text_video": "stand-in for overall consistency",
        },
        weighed={
            "subject_consistency": "subject consistency", "background_consistency": "background consistency",
            "aesthetic_quality": "aesthetic quality",
        },
        lacks=(
            "object class", "multiple objects", "human action", "color", "spatial relationship",
            "scene", "appearance style", "temporal style",
        ),
    ),
    "audiocanvas": Panel(
        light={
            "sync": "stand-in for DeSync", "stereo_place": "stand-in for CRW and GCC",
            "text_audio": "stand-in for CLAP", "sound": "stand-in for production quality",
        },
        weighed={
            "clap": "CLAP", "desync": "DeSync (Synchformer)",
            "audiobox": "CE, CU, PC and PQ (AudioBox), as components",
        },
        lacks=("FD and KL against reference sound", "CRW and GCC by StereoCRW"),
    ),
}  # fmt: skip


def with_panel(name: Any, rewards: Any) -> Any:
    """The rewards of a job's tree, so that a wrong one is told at its number there, and those of its panel behind them.

    One that the job names itself is as it says there.
    """
    if not isinstance(name, str) or name not in PANELS or not isinstance(rewards, list):
        return rewards
    own = {one.get("name") for one in rewards if isinstance(one, dict)}
    return [*rewards, *({"name": light} for light in PANELS[cast(PanelName, name)].light if light not in own)]


def missing(name: PanelName, measured: Set[str]) -> str:
    """What of a panel is not measured, in a sentence; "" when all of it is."""
    panel = PANELS[name]
    absent = [f"{metric} (reward {reward}, needs weights)" for reward, metric in panel.weighed.items()
              if reward not in measured]  # fmt: skip
    gone = [*absent, *panel.lacks]
    return f"Panel {name} without {'; '.join(gone)}." if gone else ""
