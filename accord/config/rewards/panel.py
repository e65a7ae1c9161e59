"""The rewards that need no weights, as specs: what each measures, where it routes, how its server is sized.

A job lists rewards by name with a weight; everything else has a default here, written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from accord.config.contract import Component, RewardSpec
from accord.types import Modality, Route


def _agreement(about: str) -> Component:
    return Component(about, "", 0.0, 1.0, "higher")


class _Bounded(RewardSpec):
    """A reward of sound and picture whose range ends at 1."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    route: Route = "both"


class _Heard(_Bounded):
    """One of the sound alone."""

    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    route: Route = "audio"


class _Seen(_Bounded):
    """One of the picture alone."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    route: Route = "video"


class SyncReward(_Bounded):
    """Evidence that sounds begin when something is seen to happen."""

    impl: ClassVar[str] = "reward_servers.panel.sync:SyncModel"
    version: ClassVar[str] = "3"
    about: ClassVar[str] = "sounds begin when something is seen to happen, more than at other lags"
    components: ClassVar[Mapping[str, Component]] = {
        "offset_s": Component("most probable lag of the sound, positive when it is late", "s", -1.25, 1.25),
        "peak": Component("largest correlation of seen and heard at that lag", low=-1.0, high=1.0, better="higher"),
        "confidence": Component("mass of the evidence above chance, at any lag", low=0.0, high=1.0, better="higher"),
        "num_seen": Component("how many events of one height are seen", low=0.0),
        "num_heard": Component("how many events of one height are heard", low=0.0),
    }
    offset_component: ClassVar[str] = "offset_s"
    name: Literal["sync"] = "sync"


class StereoPlaceReward(_Bounded):
    """Agreement of where things are seen and heard."""

    impl: ClassVar[str] = "reward_servers.panel.stereo_place:StereoPlaceModel"
    about: ClassVar[str] = "what moves on one side is heard on that side"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    components: ClassVar[Mapping[str, Component]] = {
        "level_place": Component("the value that differences of level alone would have", "", -1.0, 1.0, "higher"),
        "time_place": Component("the value that differences of time alone would have", "", -1.0, 1.0, "higher"),
        "seen_spread": Component("root mean square of the seen place, 1 being the edge", low=0.0, high=1.0),
        "heard_spread": Component("root mean square of the heard place, 1 being one channel alone", low=0.0, high=1.0),
        "windows": Component("how many windows of 250 ms have sound and motion", low=0.0),
    }
    name: Literal["stereo_place"] = "stereo_place"


class SoundReward(_Heard):
    """Technical quality of the sound."""

    impl: ClassVar[str] = "reward_servers.panel.sound:SoundModel"
    version: ClassVar[str] = "2"
    about: ClassVar[str] = "the sound is free of noise, full, unclipped, without gaps, and loud enough to hear"
    components: ClassVar[Mapping[str, Component]] = {
        "snr_db": Component("sound over the level noise that may be in it", "dB", -20.0, 80.0, "higher"),
        "bandwidth": Component("share of the third-octaves up to the highest that is heard", "", 0.0, 1.0, "higher"),
        "clipped_share": Component("share of samples that stand at the peak", "", 0.0, 1.0, "lower"),
        "active_share": Component("share of time in which more than noise and hum is heard", "", 0.0, 1.0, "higher"),
        "loudness_db": Component("level of the mean amplitude, without the loudest tenth of the time", "dBFS"),
        "steady_share": Component("share of the power in tones that never pause", "", 0.0, 1.0, "lower"),
        "dc_share": Component("share of the power in a constant offset", "", 0.0, 1.0, "lower"),
    }
    name: Literal["sound"] = "sound"


class PictureReward(_Seen):
    """Technical frame quality."""

    impl: ClassVar[str] = "reward_servers.panel.picture:PictureModel"
    version: ClassVar[str] = "2"
    about: ClassVar[str] = "frames are sharp, clean, with contrast, well exposed, and not too colourful"
    components: ClassVar[Mapping[str, Component]] = {
        "sharpness": Component("gradient that ends within two pixels", "", 0.0, 1.0, "higher"),
        "noise": Component("deviation of the grain", "of full scale", 0.0, 1.0, "lower"),
        "contrast": Component("deviation of the brightness without grain", "of full scale", 0.0, 0.5, "higher"),
        "brightness": Component("mean brightness", "of full scale", 0.0, 1.0),
        "clipped": Component("share of black and white pixels", "", 0.0, 1.0, "lower"),
        "blockiness": Component("excess of steps on the borders of 8x8 blocks", "", 0.0, 255.0, "lower"),
        "colourfulness": Component("Hasler and Suesstrunk's M", "", 0.0, 500.0),
    }
    name: Literal["picture"] = "picture"


class MotionReward(_Seen):
    """Motion that is there, and smooth."""

    impl: ClassVar[str] = "reward_servers.panel.motion:MotionModel"
    about: ClassVar[str] = "things move, evenly, under a steady light and camera"
    components: ClassVar[Mapping[str, Component]] = {
        "speed": Component("of the fastest twentieth of the pixels", "short sides/s", 0.0),
        "unevenness": Component("change of velocity over speed", "", 0.0, better="lower"),
        "shake": Component("jumps of the camera", "short sides", 0.0, better="lower"),
        "flicker": Component("jumps of the mean brightness", "of the brightness", 0.0, better="lower"),
        "unlikeness": Component("error of a frame foretold along the flow", "of the contrast", 0.0, better="lower"),
        "frozen_share": Component("pairs of frames between which nothing moves", "", 0.0, 1.0, "lower"),
    }
    name: Literal["motion"] = "motion"


class ConsistencyReward(_Seen):
    """Things stay what they are, while they move."""

    impl: ClassVar[str] = "reward_servers.panel.consistency:ConsistencyModel"
    about: ClassVar[str] = "colours and outlines stay what they are, while something moves"
    components: ClassVar[Mapping[str, Component]] = {
        "to_previous": Component("cosine to the frame looked at before", "", 0.0, 1.0, "higher"),
        "to_first": Component("cosine to the first frame", "", 0.0, 1.0, "higher"),
        "liveliness": Component("gate by the speed of the fastest pixels", "", 0.0, 1.0, "higher"),
    }
    name: Literal["consistency"] = "consistency"


class TextVideoReward(_Seen):
    """Text-video agreement by a closed-vocabulary verifier."""

    impl: ClassVar[str] = "reward_servers.panel.text_video:TextVideoModel"
    version: ClassVar[str] = "2"
    about: ClassVar[str] = "what stands out has the colour and the motion that the text names; camera and light agree"
    prompt_anchored: ClassVar[bool] = True
    components: ClassVar[Mapping[str, Component]] = {
        "colour": _agreement("what stands out has the named hue"),
        "motion": _agreement("it travels the named way"),
        "camera": _agreement("the camera stands, moves or zooms as told"),
        "direction": _agreement("what moves goes to the named side"),
        "speed": _agreement("what moves is as fast as told"),
        "light": _agreement("the picture is as bright as told"),
        "flash": _agreement("light flashes, as often as told"),
    }
    name: Literal["text_video"] = "text_video"


class TextAudioReward(_Heard):
    """Text-audio agreement by a closed-vocabulary verifier."""

    impl: ClassVar[str] = "reward_servers.panel.text_audio:TextAudioModel"
    about: ClassVar[str] = "the sound has the kind, pitch, level and tempo that the text names"
    prompt_anchored: ClassVar[bool] = True
    needs_sound: ClassVar[bool] = False
    components: ClassVar[Mapping[str, Component]] = {
        "kind": _agreement("it is struck, tonal, noisy, humming or spoken as told, in the band of the named thing"),
        "manner": _agreement("it is as high, loud, fast and often as told"),
        "silence": _agreement("it is silent as told"),
    }
    name: Literal["text_audio"] = "text_audio"


class TemporalFlickerReward(_Seen):
    """VBench's temporal flickering."""

    impl: ClassVar[str] = "reward_servers.panel.vbench:TemporalFlickerModel"
    about: ClassVar[str] = "neighbouring frames are alike (VBench, exact)"
    smallest_effect: ClassVar[float] = 0.002
    name: Literal["temporal_flicker"] = "temporal_flicker"


class MotionSmoothnessReward(_Seen):
    """A twin of VBench's motion smoothness."""

    impl: ClassVar[str] = "reward_servers.panel.vbench:MotionSmoothnessModel"
    about: ClassVar[str] = "a frame lies between its neighbours (VBench, by flow)"
    components: ClassVar[Mapping[str, Component]] = {
        "error": Component("mean error of the frames left out", "of full scale", 0.0, 1.0, "lower"),
    }
    smallest_effect: ClassVar[float] = 0.002
    name: Literal["motion_smoothness"] = "motion_smoothness"


class DynamicDegreeReward(_Seen):
    """A twin of VBench's dynamic degree, continuous."""

    impl: ClassVar[str] = "reward_servers.panel.vbench:DynamicDegreeModel"
    about: ClassVar[str] = "something moves (VBench, by flow)"
    components: ClassVar[Mapping[str, Component]] = {
        "ratio": Component("displacement of the fastest pixels", "of VBench's threshold", 0.0, better="higher"),
        "dynamic": Component("VBench's verdict", "", 0.0, 1.0, "higher"),
    }
    name: Literal["dynamic_degree"] = "dynamic_degree"
