"""Rewards of a set: who is judged with whom, what a clip adds, and what a file of exemplars may be."""

import numpy as np
import pytest
import safetensors.numpy

from accord.config.contract import ModelFacts
from accord.config.rewards.sets import AudioFrechetReward, AudioVendiReward, VideoVendiReward
from accord.errors import ModelError, UserError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.sets.embedders import heard, seen
from reward_servers.sets.models import write_exemplars

PROMPT = Prompt("p", "a", "a", "a")
RATE = 16_000


def clip(hz: float, grey: int = 90, seed: int = 0) -> Clip:
    time = np.arange(RATE) / RATE
    noise = 0.01 * np.random.default_rng(seed).standard_normal(RATE)
    sound = (0.3 * np.sin(2 * np.pi * hz * time) + noise).astype(np.float32)
    video = np.full((6, 32, 32, 3), grey, np.uint8)
    video[:, 8:16, 8:16] = (200, 40, grey)
    return Clip(video, 8.0, sound[None], RATE)


def test_the_one_that_differs_earns_most_and_groups_do_not_meet():
    model = build(AudioVendiReward())
    alike = [clip(400, seed=seed) for seed in range(4)]
    odd = [*alike[:3], clip(3000)]
    both = score_groups(model, [PROMPT, PROMPT], [odd, alike])
    (alone,) = score_groups(model, [PROMPT], [odd])
    assert both[0].values == alone.values
    assert np.argmax(alone.values) == 3 and alone.values[3] > 0
    assert alone.components["vendi"][0] > both[1].components["vendi"][0] >= 1.0


def test_order_changes_nothing():
    model = build(VideoVendiReward())
    clips = [clip(400, grey) for grey in (10, 20, 200, 90)]
    (forward,), (backward,) = (score_groups(model, [PROMPT], [order]) for order in (clips, clips[::-1]))
    assert forward.values == pytest.approx(backward.values[::-1], abs=1e-12)


def test_a_set_too_small_to_leave_one_out_has_no_score_and_a_bad_clip_leaves_the_set():
    model = build(AudioVendiReward())
    nothing = Clip(clip(400).video_FHWC, 8.0, np.full((1, RATE), np.nan, np.float32), RATE)
    (two,) = score_groups(model, [PROMPT], [[clip(400), clip(500)]])
    (one,) = score_groups(model, [PROMPT], [[clip(400), nothing]])
    assert two.reasons == ("too_few", "too_few") and one.reasons == ("too_few", "non_finite")
    good = [clip(400), clip(500), clip(3000)]
    (mixed,), (clean,) = (score_groups(model, [PROMPT], [group]) for group in ([*good, nothing], good))
    assert mixed.values[:3] == clean.values and mixed.reasons[3] == "non_finite"


@pytest.mark.parametrize(("row", "reason"), [(np.full(128, np.nan), "non_finite"), (None, "model_error")])
def test_a_clip_without_a_row_leaves_the_set(row, reason):
    model, clips = build(AudioVendiReward()), [clip(hz) for hz in (400, 500, 3000, 900)]
    (clean,) = score_groups(model, [PROMPT], [clips[:3]])
    embed = model.embedder

    def failing(one):
        if not np.array_equal(one.audio_CS, clips[3].audio_CS):
            return embed(one)
        if row is None:
            raise RuntimeError("out of memory")
        return row

    model.embedder = failing
    (mixed,) = score_groups(model, [PROMPT], [clips])
    assert mixed.values[:3] == clean.values and mixed.reasons == ("ok", "ok", "ok", reason)


class TestExemplars:
    @pytest.fixture
    def spec(self, tmp_path):
        spec = AudioFrechetReward(exemplars=str(tmp_path / "low.safetensors"))
        assert write_exemplars(spec, (clip(380 + 5 * seed, seed=seed) for seed in range(8))) == 8
        return spec

    def test_who_is_like_the_exemplars_brings_the_step_nearer(self, spec):
        model = build(spec)
        assert not list(spec.problems(None, ModelFacts()))
        groups = [[clip(400, seed=20), clip(410, seed=21)], [clip(395, seed=22), clip(4000, seed=23)]]
        first, second = score_groups(model, [PROMPT, PROMPT], groups)
        values = [*first.values, *second.values]
        assert np.argmin(values) == 3 and values[3] < 0 < max(values)
        assert len({*first.components["distance"], *second.components["distance"]}) == 1  # the step is one set

    def test_the_digest_is_of_the_exemplars_too(self, spec, tmp_path):
        other = AudioFrechetReward(exemplars=str(tmp_path / "other.safetensors"))
        write_exemplars(other, [clip(900 + 5 * seed, seed=seed) for seed in range(8)])
        digests = {build(one).weights_digest for one in (spec, other, spec)}
        assert len(digests) == 2 and all(len(one) == 64 for one in digests)

    @pytest.mark.parametrize(
        ("tensors", "header", "told"),
        [
            ({"rows": np.zeros((8, 128))}, {"reward": "video_frechet"}, "of the reward 'video_frechet', not"),
            ({"rows": np.zeros((8, 128))}, {"embedder": "clap"}, "of the embedder 'clap', not 'log_mel'"),
            ({"rows": np.zeros((2, 128))}, {}, "3 or more rows"),
            ({"rows": np.zeros((8, 128), np.float32)}, {}, "3 or more rows"),
            ({"others": np.zeros((8, 128))}, {}, "3 or more rows"),
        ],
    )
    def test_a_file_that_is_none_is_refused_with_the_remedy(self, tmp_path, tensors, header, told):
        path = tmp_path / "x.safetensors"
        safetensors.numpy.save_file(tensors, path, {"reward": "audio_frechet", "embedder": "log_mel"} | header)
        spec = AudioFrechetReward(exemplars=str(path))
        ((where, what),) = spec.problems(None, ModelFacts())
        assert where == "exemplars" and told in what and "accord rewards exemplars audio_frechet" in what
        with pytest.raises(ModelError, match=rf"(?s){told}.*accord rewards exemplars audio_frechet"):
            build(spec)

    def test_what_is_no_number_a_torn_file_and_none_are_refused(self, spec, tmp_path):
        header = {"reward": "audio_frechet", "embedder": "log_mel"}
        safetensors.numpy.save_file({"rows": np.full((8, 128), np.nan)}, tmp_path / "nan", header)
        with pytest.raises(ModelError, match="no number"):
            build(AudioFrechetReward(exemplars=str(tmp_path / "nan")))
        file = tmp_path / "low.safetensors"
        file.write_bytes(file.read_bytes()[:100])
        for path in (file, tmp_path / "absent"):
            with pytest.raises(ModelError, match="holds no exemplars"):
                build(AudioFrechetReward(exemplars=str(path)))

    def test_too_few_clips_are_no_distribution(self, tmp_path):
        with pytest.raises(UserError, match="2 clips are too few"):
            write_exemplars(AudioFrechetReward(exemplars=str(tmp_path / "few")), [clip(400), clip(500)])
        assert not (tmp_path / "few").exists()


def test_embeddings_follow_what_they_are_of():
    low, high = heard(clip(400)), heard(clip(3000))
    assert low.shape == (128,) and np.argmax(low[:64]) < np.argmax(high[:64])
    again = seen(clip(400))
    assert again.shape == (208,) and again.sum() == pytest.approx(2.0) and np.array_equal(again, seen(clip(900)))
    assert np.abs(again - seen(clip(400, grey=250))).sum() > 0.5
