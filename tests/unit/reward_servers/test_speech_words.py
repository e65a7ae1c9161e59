"""Words that are to be said: quotation marks, word errors, and Whisper's greedy transcript against one in numpy."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from accord.config.contract import ModelFacts
from accord.config.rewards.sound import SpeechWordsReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.spoken import normalised, spoken, unspoken, wrong_words
from tests.unit.reward_servers import tiny_whisper as tiny

VIDEO = np.zeros((3, 8, 8, 3), np.uint8)
MOST = 12


def clip(seconds: float, rate: int = 16_000, channels: int = 1) -> Clip:
    """Noise that swells and fades; other lengths, other noise."""
    rng, count = np.random.default_rng(int(seconds * 100)), int(seconds * rate)
    swell = np.sin(np.arange(count) / rate * seconds * 9) ** 2
    return Clip(VIDEO, 24.0, (0.1 * rng.standard_normal((channels, count)) * swell).astype(np.float32), rate)


def asked(text: str) -> Prompt:
    return Prompt("p", "nothing", "nothing", text)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_checkpoint(folder / "whisper-base")
    return folder


@pytest.fixture(scope="module")
def model(home: Path):
    return build(SpeechWordsReward(path=str(home), max_tokens=MOST))


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "said", "rest"),
    [
        ('A man says: "Good morning."', "Good morning.", "A man says:"),
        ("A man says: 'Good morning, it's late', and leaves", "Good morning, it's late", "A man says: , and leaves"),
        ("She shouts “Run!” and he answers ‘I can’t’.", "Run! I can’t", "She shouts and he answers ."),
        ("„Hallo“ sagt sie, «bonjour» er", "Hallo bonjour", "sagt sie, er"),
        ("彼女は「こんにちは」と言い、『はい』と答える", "こんにちは はい", "彼女は と言い、 と答える"),
        ("the dog's bark and the cats' purr", "", "the dog's bark and the cats' purr"),
        ("an open \"quote", "", "an open \"quote"), ('""', "", '""'), ("", "", ""),
    ],
)  # fmt: skip
def test_what_stands_in_quotation_marks_is_said(text: str, said: str, rest: str):
    assert spoken(text) == said
    assert " ".join(unspoken(text).split()) == rest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Good morning.", "good morning"), ("  It's   LATE -- don’t!  ", "its late dont"), ("one-two_x", "one two x"),
        ("Straße ＡＢＣ é", "strasse abc é"), ("3 o'clock, 10:30", "3 oclock 10 30"), ("…", ""),
    ],
)  # fmt: skip
def test_words_are_compared_without_case_and_marks(text: str, words: str):
    assert normalised(text) == words.split()


@pytest.mark.parametrize(
    ("wanted", "heard", "wrong"),
    [
        ("a b c d", "a b c d", 0), ("a b c d", "a x c d", 1), ("a b c d", "a c d", 1), ("a b c d", "a b x c d", 1),
        ("a b c d", "b c d a", 2), ("a b", "", 2), ("", "a b", 2), ("a b c", "x y z q", 4), ("a a a", "a", 2),
    ],
)  # fmt: skip
def test_word_errors_are_counted(wanted: str, heard: str, wrong: int):
    assert wrong_words(wanted.split(), heard.split()) == wrong


def test_word_errors_are_the_fewest_of_all_alignments():
    def slow(one, other):
        """Over all pairs of places of equal length: those aligned are changed or kept, the others left out or added."""
        best = len(one) + len(other)
        for count in range(1, min(len(one), len(other)) + 1):
            for mine in combinations(range(len(one)), count):
                for its in combinations(range(len(other)), count):
                    changed = sum(one[a] != other[b] for a, b in zip(mine, its, strict=True))
                    best = min(best, changed + len(one) + len(other) - 2 * count)
        return best

    rng = np.random.default_rng(0)
    for _ in range(60):
        one, other = (rng.integers(0, 3, rng.integers(0, 6)).tolist() for _ in range(2))
        assert wrong_words(one, other) == slow(one, other)


# ---------------------------------------------------------------- the same in numpy


def features(sound_S: np.ndarray) -> np.ndarray:
    """Whisper's log-mel picture [M, T]: 25 ms, 10 ms, Slaney's mels, 80 dB deep, mirrored ends."""
    filled = np.zeros(tiny.SECONDS * 16_000)
    filled[: len(sound_S)] = sound_S
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(filled, 200, mode="reflect"), 400)[::160][:-1]
    power = np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)))) ** 2

    def mel(hz):
        hz = np.asarray(hz, dtype=np.float64)
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))

    def hertz(mels):
        return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))

    edges = hertz(np.linspace(mel(0.0), mel(8000.0), tiny.MELS + 2))
    bins = np.linspace(0, 8000, 201)
    up = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    bank = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    heard = np.log10(np.maximum(bank @ power.T, 1e-10))
    return (np.maximum(heard, heard.max() - 8.0) + 4.0) / 4.0


class NumpyWhisper:
    """From the weights by published name, in float64, without a cache."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.w = {name.removeprefix("model."): tensor.numpy().astype(np.float64) for name, tensor in state.items()}

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def normed(self, x, name):
        centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return centred * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attended(self, x, seen, name, causal=False):
        q, k, v = (
            self.linear(of, f"{name}.{part}_proj").reshape(len(of), tiny.HEADS, -1).transpose(1, 0, 2)
            for of, part in ((x, "q"), (seen, "k"), (seen, "v"))
        )
        logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        if causal:
            logits = logits + np.triu(np.full(logits.shape[1:], -np.inf), 1)
        return self.linear((softmax(logits, axis=-1) @ v).transpose(1, 0, 2).reshape(len(x), -1), f"{name}.out_proj")

    def grown(self, x, name):
        return x + self.linear(
            gelu(self.linear(self.normed(x, f"{name}.final_layer_norm"), f"{name}.fc1")), f"{name}.fc2"
        )

    def encoded(self, picture_MT):
        x = picture_MT
        for conv, step in (("conv1", 1), ("conv2", 2)):
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1))), 3, axis=1)[:, ::step]
            kernel, bias = self.w[f"encoder.{conv}.weight"], self.w[f"encoder.{conv}.bias"]
            x = gelu(np.einsum("ctk,ock->ot", windows, kernel) + bias[:, None])
        x = x.T + self.w["encoder.embed_positions.weight"]
        for index in range(tiny.LAYERS):
            at = f"encoder.layers.{index}"
            y = self.normed(x, f"{at}.self_attn_layer_norm")
            x = self.grown(x + self.attended(y, y, f"{at}.self_attn"), at)
        return self.normed(x, "encoder.layer_norm")

    def logits(self, tokens, seen):
        table = self.w["decoder.embed_tokens.weight"]
        x = table[tokens] + self.w["decoder.embed_positions.weight"][: len(tokens)]
        for index in range(tiny.LAYERS):
            at = f"decoder.layers.{index}"
            y = self.normed(x, f"{at}.self_attn_layer_norm")
            x = x + self.attended(y, y, f"{at}.self_attn", causal=True)
            x = x + self.attended(self.normed(x, f"{at}.encoder_attn_layer_norm"), seen, f"{at}.encoder_attn")
            x = self.grown(x, at)
        return table @ self.normed(x, "decoder.layer_norm")[-1]

    def written(self, sound_S, language="en"):
        seen, said = self.encoded(features(sound_S)), []
        start = [tiny.IDS[f"<|{name}|>"] for name in ("startoftranscript", language, "transcribe", "notimestamps")]
        while len(said) < MOST:
            logits = self.logits(start + said, seen)
            logits[tiny.SUPPRESSED + ([] if said else tiny.SUPPRESSED_FIRST)] = -np.inf
            if (token := int(logits.argmax())) == tiny.END:
                break
            said.append(token)
        return " ".join(tiny.TEXTS[token][1:] for token in said if token < tiny.END)


def gelu(x):
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


WHISPER = NumpyWhisper(tiny.state_dict())


@pytest.mark.parametrize("seconds", [0.7, 1.3, 2.0, 2.6, 4.5])
def test_the_transcript_is_that_of_the_model_in_numpy(model, seconds: float):
    sound = clip(seconds).audio_CS[0].astype(np.float64)
    wanted = " ".join(WHISPER.written(sound[start : start + 32_000]) for start in range(0, len(sound), 32_000))
    assert model.transcript(sound).split() == wanted.split()
    assert len(set(wanted.split())) > 3


def test_the_score_is_the_share_of_right_words(model):
    heard = clip(1.3)
    words = WHISPER.written(heard.audio_CS[0].astype(np.float64)).split()
    text = " ".join(words)
    missing, other = " ".join(words[1:]), " ".join(["zebra", *words[1:-1], "zebra"])
    prompts = [f'A man says: "{quoted}".' for quoted in (text.upper(), missing, other, "nothing of this kind", "no")]
    scores = [score_groups(model, [asked(prompt)], [[heard]])[0] for prompt in prompts]
    n = len(words)
    rates = [0.0, 1 / (n - 1), 2 / n, n / 4, float(n)]
    assert [one.components["wer"][0] for one in scores] == pytest.approx(rates)
    assert [one.values[0] for one in scores] == pytest.approx([1.0, 1 - 1 / (n - 1), 1 - 2 / n, 0.0, 0.0])
    assert (scores[1].components["wanted"][0], scores[1].components["heard"][0]) == (n - 1, n)


def test_the_language_is_told(home: Path):
    german = build(SpeechWordsReward(path=str(home), max_tokens=MOST, language="de"))
    sound = clip(2.0).audio_CS[0].astype(np.float64)
    assert german.transcript(sound).split() == WHISPER.written(sound, "de").split() != WHISPER.written(sound).split()


def test_texts_in_which_nobody_speaks_have_no_score_and_silence_has_the_floor(model):
    silent = Clip(VIDEO, 24.0, np.zeros((1, 32_000), np.float32), 16_000)
    for text in ("a man speaks", "", 'he says "…"', "it's the dog's " * 900):
        (scores,) = score_groups(model, [asked(text)], [[clip(1.0), silent]])
        assert scores.reasons == ("unverifiable", "unverifiable")
    (scores,) = score_groups(model, [asked('"red ball"')], [[silent]])
    assert (scores.values, scores.reasons) == ((0.0,), ("silent_audio",))


def test_company_rate_and_channels_do_not_matter(model):
    eight, prompt = [clip(1.0 + place / 4) for place in range(8)], asked('"horse horse stone stone bell ball"')
    alone = tuple(score_groups(model, [prompt], [[one]])[0].components["wer"][0] for one in eight)
    assert score_groups(model, [prompt], [eight])[0].components["wer"] == alone
    assert len(set(alone)) > 2
    doubled = Clip(VIDEO, 24.0, np.repeat(eight[0].audio_CS, 2, axis=0), 16_000)
    assert score_groups(model, [prompt], [[doubled]])[0].components["wer"] == alone[:1]


# ---------------------------------------------------------------- directories that will not do


def test_english_alone_is_told_neither_language_nor_task(tmp_path: Path):
    tiny.write_checkpoint(
        tmp_path, generation_config={"is_multilingual": False, "lang_to_id": None, "task_to_id": None}
    )
    model = build(SpeechWordsReward(path=str(tmp_path), max_tokens=3))
    assert model._start == [tiny.START, tiny.IDS["<|notimestamps|>"]]
    spec = SpeechWordsReward(path=str(tmp_path), language="de", max_tokens=3)
    assert [field for field, _ in spec.problems(None, ModelFacts())] == ["language"]


def test_a_file_may_hold_the_table_of_tokens_twice(home: Path, tmp_path: Path):
    state = tiny.state_dict()
    tiny.write_checkpoint(tmp_path, state | {"proj_out.weight": state["model.decoder.embed_tokens.weight"].clone()})
    spec = SpeechWordsReward(path=str(tmp_path), max_tokens=MOST)
    sound = clip(1.3).audio_CS[0].astype(np.float64)
    assert build(spec).transcript(sound).split() == WHISPER.written(sound).split()
    assert {Path(named.path).name for named in spec.files()} == {
        "config.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json", "model.safetensors"
    }  # fmt: skip


CHANGED = {
    "kind": {"config": {"model_type": "wav2vec2"}}, "sizes": {"config": {"d_model": None}},
    "rate": {"preprocessor_config": {"sampling_rate": 8_000}},
    "length": {"preprocessor_config": {"chunk_length": 30}}, "mels": {"preprocessor_config": {"feature_size": 128}},
    "extractor": {"preprocessor_config": {"feature_extractor_type": "ASTFeatureExtractor"}},
    "age": {"generation_config": {"no_timestamps_token_id": None}},
    "languages": {"generation_config": {"lang_to_id": {}}},
    "task": {"generation_config": {"task_to_id": {"translate": 3}}},
    "token": {"generation_config": {"suppress_tokens": [10**6]}},
}  # fmt: skip


def _broken(way: str, folder: Path) -> None:
    state = tiny.state_dict()
    if way == "lacks":
        del state["model.decoder.layers.1.encoder_attn.v_proj.bias"]
    elif way == "unknown":
        state["classifier.weight"] = torch.zeros(2)
    elif way == "shape":
        state["model.encoder.conv1.weight"] = torch.zeros(tiny.WIDE, 128, 3)
    tiny.write_checkpoint(folder, state, **CHANGED.get(way, {}))
    if way == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif way == "torn":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif way == "tokenizer":
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("kind", "model_type is 'wav2vec2'"), ("sizes", "d_model is None"), ("rate", "sampling_rate is 8000"),
        ("length", r"chunk_length is 30 s, and config\.json has places for 2 s"), ("mels", "feature_size is 128"),
        ("extractor", "prepares sound by 'ASTFeatureExtractor'"), ("age", "no_timestamps_token_id is None"),
        ("languages", "no tokens of languages"), ("task", "transcribe is None"), ("token", "suppress_tokens is no"),
        ("lacks", r"lacks model\.decoder\.layers\.1\.encoder_attn\.v_proj\.bias"), ("unknown", "unknown classifier"),
        ("shape", r"conv1\.weight is \(16, 128, 3\)"), ("pickle", r"model\.safetensors: No such file"),
        ("torn", "torn"), ("tokenizer", "holds no model of a tokenizer"),
    ],
)  # fmt: skip
def test_directories_that_will_not_do_are_named_before_a_job_starts(tmp_path: Path, way: str, why: str):
    _broken(way, tmp_path)
    spec = SpeechWordsReward(path=str(tmp_path), max_tokens=MOST)
    ((field, told),) = spec.problems(None, ModelFacts())
    assert field == "path"
    for message in (told, None):
        with pytest.raises(ModelError, match=why):
            if message is None:
                build(spec)
            raise ModelError(told)


@pytest.mark.parametrize(("field", "value"), [("language", "tlh"), ("max_tokens", 29)])
def test_what_a_checkpoint_cannot_do_is_told_at_its_field(home: Path, field: str, value: object):
    spec = SpeechWordsReward(**{"path": str(home), "max_tokens": MOST, field: value})
    assert [place for place, _ in spec.problems(None, ModelFacts())] == [field]
    with pytest.raises(ModelError, match=str(value)):
        build(spec)
    assert list(SpeechWordsReward(path=str(home), max_tokens=28).problems(None, ModelFacts())) == []
