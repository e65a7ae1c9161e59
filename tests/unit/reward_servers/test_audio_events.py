"""Event-grounded sound: which events a text names, what the score makes of tags, and the AST against one in numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, expit, softmax

from accord.config.ast_dir import inspect_ast
from accord.config.contract import ModelFacts
from accord.config.rewards.sound import AudioEventsReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.audio_events import strangers
from reward_servers.models.audio_tags import apart, cut
from reward_servers.models.event_names import EventNames, stem
from tests.unit.reward_servers import tiny_ast as tiny

VIDEO = np.zeros((3, 8, 8, 3), np.uint8)
FOLDER = "ast-finetuned-audioset-10-10-0.4593"
PLACES = {label: place for place, label in tiny.LABELS.items()}
WINDOW = 400 + 127 * 160


def clip(seconds: float, rate: int = 16_000, channels: int = 1) -> Clip:
    rng = np.random.default_rng(int(seconds * 100))
    return Clip(VIDEO, 24.0, (0.1 * rng.standard_normal((channels, int(seconds * rate)))).astype(np.float32), rate)


def asked(text: str) -> Prompt:
    return Prompt("p", "nothing", "nothing", text)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_checkpoint(folder / FOLDER)
    return folder


@pytest.fixture(scope="module")
def model(home: Path):
    return build(AudioEventsReward(path=str(home)))


# ---------------------------------------------------------------- what a text names


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("A dog barks.", ["Canidae, dogs, wolves|Dog", "Bark"], ""),
        ("Two dogs, barking and barking", ["Canidae, dogs, wolves|Dog", "Bark"], ""),
        ("a woman speaks over applause", ["Female speech, woman speaking", "Applause"], ""),
        ('A person says "a dog barks".', ["Speech"], ""),
        ("a car alarm in the rain", ["Car alarm", "Rain"], ""),
        ("a church bell, then a bell", ["Church bell", "Bell"], ""),
        ("footsteps and steps", ["Walk, footsteps"], ""),
        ("wind without any background music", ["Wind"], "Background music"),
        ("birds chirping, no speech", ["Bird", "Chirp, tweet"], "Speech"),
        ("no speech, just rain", ["Rain"], "Speech"),
        ("No speech. Rain on a roof", ["Rain"], "Speech"),
        ("without speech but with applause", ["Applause"], "Speech"),
        ("a guitar, acoustic", ["Guitar"], ""),
        ("splashes of water", ["Splash, splatter"], ""),
        ("the silence of a blue camera by the wood", [], ""),
        ("One steady tone.", [], ""),
        ("", [], ""),
    ],
)  # fmt: skip
def test_a_text_names_events_by_the_words_of_their_labels(text: str, wanted: list[str], unwanted: str):
    named = EventNames(tiny.labels()).of(text)
    assert ["|".join(sorted(tiny.LABELS[place] for place in event)) for event in named.wanted] == wanted
    assert [tiny.LABELS[place] for place in named.unwanted] == ([unwanted] if unwanted else [])


@pytest.mark.parametrize(
    "forms",
    ["bark barks barked barking", "bounce bounces bouncing", "cry cries cried crying", "splash splashes splashing",
     "chop chopping chops", "buzz buzzes buzzing", "string strings", "bus buses", "glass glasses", "speech says voices",
     "step footsteps"],
)  # fmt: skip
def test_forms_of_a_word_share_a_stem(forms: str):
    assert len({stem(word) for word in forms.split()}) == 1


def test_every_label_names_itself():
    names = EventNames(tiny.labels())
    quiet = {"Silence", "Field recording", "Blues", "Wood", "Keyboard (musical)"}
    for label, place in PLACES.items():
        first = label.partition(" (")[0]
        assert any(place in event for event in names.of(first).wanted) == (label not in quiet), label


# ---------------------------------------------------------------- from tags to a score


def scored(model, monkeypatch, text: str, *windows: dict[str, float]):
    """The score of sound in which each window is tagged so; all other classes are at 0.01."""
    tags = np.array([[window.get(label, 0.01) for label in tiny.labels()] for window in windows])
    monkeypatch.setattr(model.tagger, "logits", lambda _clip: np.log(tags / (1 - tags)))
    sound = np.full((1, WINDOW * len(windows)), 0.1, np.float32)
    (scores,) = score_groups(model, [asked(text)], [[Clip(VIDEO, 24.0, sound, 16_000)]])
    return scores


def test_the_value_is_what_is_named_less_what_is_strange(model, monkeypatch):
    heard = {"Dog": 0.5, "Canidae, dogs, wolves": 0.6, "Bark": 0.2, "Animal": 0.95, "Bouncing": 0.9, "Television": 0.9,
             "Music": 0.65, "Guitar": 0.3}  # fmt: skip
    scores = scored(model, monkeypatch, "a dog barks", heard)
    parts = {name: value for name, (value,) in scores.components.items()}
    stray = (0.65 - 0.3) / 0.7  # relatives, impacts and rooms do not count
    assert parts == pytest.approx({"present": 0.4, "weakest": 0.2, "stray": stray, "events": 2.0, "windows": 1.0})
    assert scores.values[0] == pytest.approx(0.4 - 0.5 * stray)


def test_what_is_asked_away_is_strange_even_in_a_named_family(model, monkeypatch):
    heard = {"Laughter": 0.8, "Speech": 0.65}
    assert scored(model, monkeypatch, "laughter", heard).components["stray"] == (0.0,)
    assert scored(model, monkeypatch, "laughter without speech", heard).components["stray"][0] == pytest.approx(0.5)


def test_a_weak_stranger_costs_nothing_and_a_louder_one_more(model, monkeypatch):
    values = [
        scored(model, monkeypatch, "rain", {"Rain": 0.6, "Music": level}).values[0] for level in (0.1, 0.3, 0.5, 0.9)
    ]
    assert values[0] == values[1] == 0.6
    assert values[1] > values[2] > values[3]


def test_an_event_need_be_heard_in_one_window(model, monkeypatch):
    scores = scored(model, monkeypatch, "a dog in the rain", {"Dog": 0.8}, {"Rain": 0.4}, {})
    assert (scores.components["present"][0], scores.components["windows"][0]) == (pytest.approx(0.6), 3.0)


def test_strangers_are_of_families_that_are_not_named(home: Path):
    families = inspect_ast(home / FOLDER).families
    named = EventNames(tiny.labels()).of("a siren and music")
    strange = {tiny.LABELS[place] for place in np.flatnonzero(strangers(named, families)) if place in tiny.LABELS}
    assert {"Speech", "Dog", "Rain", "Door", "Explosion", "Noise"} <= strange
    assert not {"Car", "Alarm", "Singing", "Bell", "Glass", "Silence", "Clicking", "Television"} & strange


def test_windows_cover_all_of_a_sound():
    sound = np.arange(25.0)
    assert [(one[0], len(one)) for one in cut(sound, 10)] == [(0, 10), (8, 10), (15, 10)]
    assert [len(one) for one in cut(sound[:7], 10)] == [7]
    assert [one[0] for one in cut(sound[:20], 10)] == [0, 10]


def test_texts_without_an_event_have_no_score_and_silence_has_the_floor(model):
    silent = Clip(VIDEO, 24.0, np.zeros((1, 32_000), np.float32), 16_000)
    for text in ("one steady tone", "", "word " * 5000):
        (scores,) = score_groups(model, [asked(text)], [[clip(1.0), silent]])
        assert scores.reasons == ("unverifiable", "unverifiable")
    (scores,) = score_groups(model, [asked("rain")], [[silent]])
    assert (scores.values, scores.reasons) == ((-0.5,), ("silent_audio",))


# ---------------------------------------------------------------- the same in numpy


def spectrogram(sound_S: np.ndarray) -> np.ndarray:
    """Log mel energies [T, M] as Kaldi defines them: 25 ms, 10 ms, Hann, pre-emphasis 0.97, from 20 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(sound_S, 400)[::160].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = np.concatenate([frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2

    def mel(hz):
        return 1127.0 * np.log(1.0 + np.asarray(hz) / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), tiny.MELS + 2)
    bins = mel(np.arange(257) * 16_000 / 512)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.log(np.maximum(power @ np.maximum(0, np.minimum(up, down)).T, 1.192092955078125e-07))


def numpy_tags(state: dict[str, torch.Tensor], window_S: np.ndarray) -> np.ndarray:
    """Probabilities [L] from the weights by published name, in float64."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    heard = spectrogram(window_S)
    filled = np.zeros((tiny.FRAMES, tiny.MELS))
    filled[: len(heard)] = heard[: tiny.FRAMES]
    picture = ((filled - tiny.MEAN) / (2 * tiny.STD)).T
    at = "audio_spectrogram_transformer"
    patches = np.lib.stride_tricks.sliding_window_view(picture, (tiny.PATCH, tiny.PATCH))
    patches = patches[:: tiny.STRIDE, :: tiny.STRIDE].reshape(-1, tiny.PATCH**2)
    kernel = w[f"{at}.embeddings.patch_embeddings.projection.weight"].reshape(tiny.WIDE, -1)
    x = patches @ kernel.T + w[f"{at}.embeddings.patch_embeddings.projection.bias"]
    firsts = [w[f"{at}.embeddings.{name}_token"][0] for name in ("cls", "distillation")]
    x = np.concatenate([*firsts, x]) + w[f"{at}.embeddings.position_embeddings"][0]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(x, name):
        centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return centred * w[f"{name}.weight"] + w[f"{name}.bias"]

    for index in range(tiny.LAYERS):
        layer = f"{at}.encoder.layer.{index}"
        y = normed(x, f"{layer}.layernorm_before")
        q, k, v = (
            linear(y, f"{layer}.attention.attention.{part}").reshape(len(y), tiny.HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        mixed = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]), axis=-1) @ v
        x = x + linear(mixed.transpose(1, 0, 2).reshape(len(y), -1), f"{layer}.attention.output.dense")
        y = linear(normed(x, f"{layer}.layernorm_after"), f"{layer}.intermediate.dense")
        x = x + linear(y * 0.5 * (1.0 + erf(y / math.sqrt(2.0))), f"{layer}.output.dense")
    pooled = normed(x, f"{at}.layernorm")[:2].mean(axis=0)
    return expit(linear(normed(pooled, "classifier.layernorm"), "classifier.dense"))


@pytest.mark.parametrize("seconds", [0.9, 1.295])
def test_the_score_is_that_of_the_model_in_numpy(model, home: Path, seconds: float):
    heard = clip(seconds)
    tags = numpy_tags(tiny.state_dict(), heard.audio_CS[0].astype(np.float64))
    assert apart(model.tagger.logits(heard))[0] == pytest.approx(tags, abs=2e-4)
    (scores,) = score_groups(model, [asked("a dog and rain")], [[heard]])
    dog = max(tags[PLACES["Dog"]], tags[PLACES["Canidae, dogs, wolves"]])
    present = (dog + tags[PLACES["Rain"]]) / 2
    away = ~np.isin(np.array(inspect_ast(home / FOLDER).families), ["animals", "nature", ""])
    assert scores.values[0] == pytest.approx(present - 0.5 * (tags[away].max() - 0.3) / 0.7, abs=5e-4)


def test_company_rate_and_channels_do_not_matter(model):
    eight = [clip(1.0 + place / 4) for place in range(8)]
    prompt = asked("a dog barks")
    alone = tuple(score_groups(model, [prompt], [[one]])[0].values[0] for one in eight)
    assert score_groups(model, [prompt], [eight])[0].values == alone
    doubled = Clip(VIDEO, 24.0, np.repeat(eight[0].audio_CS, 2, axis=0), 16_000)
    assert score_groups(model, [prompt], [[doubled]])[0].values[0] == pytest.approx(alone[0], abs=1e-6)


def test_the_folder_or_the_one_above_it_may_be_named(model, home: Path):
    spec = AudioEventsReward(path=str(home / FOLDER))
    same = build(spec)
    assert same.weights_digest == model.weights_digest and len(model.weights_digest) == 64
    assert {Path(named.path).name for named in spec.files()} == {
        "config.json", "preprocessor_config.json", "model.safetensors"
    }  # fmt: skip
    assert list(spec.problems(None, ModelFacts())) == []


# ---------------------------------------------------------------- directories that will not do


NAMES = {str(place): label for place, label in enumerate(tiny.labels())}
KEY = "audio_spectrogram_transformer.encoder.layer.1.attention.attention.key.bias"
CONFIGS = {
    "few labels": {"id2label": {"0": "yes", "1": "no"}}, "kind": {"model_type": "wav2vec2"},
    "other labels": {"id2label": {place: f"Class {place}" for place in NAMES}},
    "holes": {"id2label": NAMES | {"7": 7}}, "sizes": {"hidden_size": "24"},
}  # fmt: skip
SETTINGS = {
    "rate": {"sampling_rate": 8_000}, "extractor": {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
    "std": {"std": 0.0},
}  # fmt: skip


def _broken(way: str, folder: Path) -> None:
    state = tiny.state_dict()
    if way == "lacks":
        del state[KEY]
    elif way == "unknown":
        state["decoder.weight"] = torch.zeros(2)
    elif way == "shape":
        state["classifier.dense.weight"] = torch.zeros(527, tiny.WIDE + 1)
    tiny.write_checkpoint(folder, state, **CONFIGS.get(way, {}))
    settings, weights = folder / "preprocessor_config.json", folder / "model.safetensors"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | SETTINGS.get(way, {})))
    if way == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif way == "torn":
        weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("few labels", "id2label has 2 labels, and AudioSet 527"), ("other labels", "are not AudioSet's"),
        ("lacks", r"lacks .*layer\.1\.attention\.attention\.key\.bias"), ("unknown", "holds the unknown decoder"),
        ("shape", r"classifier\.dense\.weight is \(527, 25\)"), ("kind", "model_type is 'wav2vec2'"),
        ("pickle", r"model\.safetensors: No such file"), ("torn", "torn"), ("rate", "sampling_rate is 8000"),
        ("extractor", "prepares sound by 'Wav2Vec2FeatureExtractor'"), ("std", "std is 0.0"),
        ("holes", "no text for class 7"), ("sizes", "hidden_size is '24'"),
    ],
)  # fmt: skip
def test_directories_that_will_not_do_are_named_before_a_job_starts(tmp_path: Path, way: str, why: str):
    _broken(way, tmp_path / FOLDER)
    spec = AudioEventsReward(path=str(tmp_path))
    ((field, told),) = spec.problems(None, ModelFacts())
    assert field == "path"
    with pytest.raises(ModelError, match=why):
        build(spec)
    with pytest.raises(ModelError, match=why):
        raise ModelError(told)
