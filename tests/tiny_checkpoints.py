"""Fields that let a reward without defaults be built: tiny checkpoints in the published forms, written on demand.

A reward whose weights have no default has a line here; the suites that try every reward read it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accord.config.contract import RewardSpec
from accord.config.rewards.remote import CardSpec
from accord.plugins import spec_class
from accord.world.scene import make_clips
from reward_servers.base import build
from reward_servers.sets.models import write_exemplars
from tests.unit.reward_servers import (
    tiny_ast,
    tiny_audiobox,
    tiny_clip,
    tiny_dnsmos,
    tiny_imagebind,
    tiny_imagereward,
    tiny_pe_av,
    tiny_qwen,
    tiny_synchformer,
    tiny_whisper,
)
from tests.unit.reward_servers.judge_server import JudgeServer
from tests.unit.reward_servers.score_server import ScoreServer


def _hpsv3(folder: Path) -> dict[str, Any]:
    bundle, base = folder / "OmniNFT-Reward-Series", folder / "Qwen2-VL-7B-Instruct"
    tiny_qwen.write_hpsv3(bundle, base)
    return {"path": str(bundle), "base": str(base), "pixels": 16 * 28**2, "dtype": "float32"}


def _videoalign(folder: Path) -> dict[str, Any]:
    bundle, base = folder / "OmniNFT-Reward-Series", folder / "Qwen2-VL-2B-Instruct"
    tiny_qwen.write_video_reward(bundle, base)
    return {"path": str(bundle), "base": str(base), "pixels": 16 * 28**2, "dtype": "float32"}


def _audiobox(folder: Path) -> dict[str, Any]:
    tiny_audiobox.write_checkpoint(folder / "OmniNFT-Reward-Series" / "audiobox-aesthetics" / "checkpoint.pt")
    return {"path": str(folder / "OmniNFT-Reward-Series")}


def _audio_events(folder: Path) -> dict[str, Any]:
    tiny_ast.write_checkpoint(folder / "ast-finetuned-audioset-10-10-0.4593")
    return {"path": str(folder)}


def _dnsmos(folder: Path) -> dict[str, Any]:
    tiny_dnsmos.write_checkpoint(folder / "DNSMOS" / "sig_bak_ovr.onnx")
    return {"path": str(folder)}


def _speech_words(folder: Path) -> dict[str, Any]:
    tiny_whisper.write_checkpoint(folder / "whisper-base")
    return {"path": str(folder), "max_tokens": 12}


def _clip(name: str, scale: float, act: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        tiny_clip.write_clip(folder / name, scale=scale, act=act)
        return {"path": str(folder)}

    return write


def _hpsv2(folder: Path) -> dict[str, Any]:
    tiny_clip.write_hpsv2(folder / "HPSv2" / "HPS_v2.1_compressed.pt")
    tiny_clip.write_tokenizer(folder / "clip")
    return {"path": str(folder), "tokenizer": str(folder / "clip")}


def _imagereward(folder: Path) -> dict[str, Any]:
    tiny_imagereward.write_checkpoint(folder / "ImageReward")
    tiny_imagereward.write_tokenizer(folder / "bert-base-uncased")
    return {"path": str(folder), "tokenizer": str(folder / "bert-base-uncased")}


def _laion(folder: Path) -> dict[str, Any]:
    tiny_clip.write_laion(folder / "improved-aesthetic-predictor" / "sac+logos+ava1-l14-linearMSE.pth")
    return _clip("clip-vit-large-patch14", 3.0, "quick_gelu")(folder)


def _aesthetic_quality(folder: Path) -> dict[str, Any]:
    tiny_clip.write_linear(folder / "aesthetic-predictor" / "sa_0_4_vit_l_14_linear.pth")
    return _clip("clip-vit-large-patch14", 3.0, "quick_gelu")(folder)


def _subject(folder: Path) -> dict[str, Any]:
    tiny_clip.write_dino(folder / "DINO" / "model.safetensors")
    return {"path": str(folder)}


def _vlm_judge(folder: Path) -> dict[str, Any]:
    """A server that answers by the content of the question; it lives as long as the process."""
    os.environ.setdefault("ACCORD_REWARD_HOSTS", "127.0.0.1")
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"url": server.url, "model": "judge", "preset": "videoscore2"}


def _remote(_folder: Path) -> dict[str, Any]:
    """A server of others that judges as `picture` does."""
    os.environ.setdefault("ACCORD_REWARD_HOSTS", "127.0.0.1")
    server = ScoreServer(build(spec_class("rewards", "picture")()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fields = server.fields()
    return {"name": "remote:picture", **fields, "card": CardSpec(**fields["card"])}


def _vlm_ranking(folder: Path) -> dict[str, Any]:
    told = _vlm_judge(folder)
    return {"url": told["url"], "model": told["model"]}


def _exemplars(name: str, weights: Callable[[Path], dict[str, Any]] = lambda _: {}) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"exemplars": str(folder / "exemplars.safetensors")} | weights(folder)
        write_exemplars(spec_class("rewards", name)(**fields), [made.clip for made in make_clips(4, 3)])
        return fields

    return write


def _desync(folder: Path) -> dict[str, Any]:
    bundle = folder / "OmniNFT-Reward-Series"
    tiny_synchformer.write_checkpoint(bundle / "synchformer" / "synchformer_state_dict.pth")
    return {"path": str(bundle)}


def _imagebind(folder: Path) -> dict[str, Any]:
    tiny_imagebind.write_checkpoint(folder / "ImageBind" / "imagebind_huge.pth")
    tiny_clip.write_tokenizer(folder / "ImageBind")
    return {"path": str(folder)}


def _pe_av(folder: Path) -> dict[str, Any]:
    tiny_pe_av.write_checkpoint(folder / "pe-av-large")
    return {"path": str(folder), "frames": 4}


WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hpsv3": _hpsv3,
    "audiobox": _audiobox,
    "audio_events": _audio_events,
    "dnsmos": _dnsmos,
    "speech_words": _speech_words,
    "desync": _desync,
    "videoalign": _videoalign,
    "clip_score": _clip("clip-vit-base-patch32", 3.0, "quick_gelu"),
    "pickscore": _clip("PickScore_v1", math.log(100.0), "gelu"),
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "laion_aesthetic": _laion,
    "aesthetic_quality": _aesthetic_quality,
    "subject_consistency": _subject,
    "background_consistency": _clip("clip-vit-base-patch32", 3.0, "quick_gelu"),
    "imagebind_av": _imagebind,
    "imagebind_tv": _imagebind,
    "imagebind_ta": _imagebind,
    "pe_av": _pe_av,
    "pe_tv": _pe_av,
    "pe_ta": _pe_av,
    "vlm_judge": _vlm_judge,
    "remote": _remote,
    "vlm_ranking": _vlm_ranking,
    "audio_frechet": _exemplars("audio_frechet"),
    "video_frechet": _exemplars("video_frechet"),
    "audio_kl": _exemplars("audio_kl", _audio_events),
    "audio_inception": _audio_events,
}


def spec_with_weights(name: str, folder: Path) -> RewardSpec:
    """The spec of a registered reward with its defaults; where it has none, with a tiny checkpoint below `folder`."""
    fields: dict[str, Any] = WRITERS[name](folder) if name in WRITERS else {}
    return spec_class("rewards", name)(**fields)
