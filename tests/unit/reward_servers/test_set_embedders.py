"""Embedders with weights: their rows and a distance by hand, and exemplars that belong to other weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTFeatureExtractor, ASTForAudioClassification, ClapFeatureExtractor, ClapModel, CLIPModel

from accord.config.clap_dir import SHIPPED
from accord.config.contract import ModelFacts
from accord.config.rewards.sets import (
    AudioFrechetReward,
    AudioInceptionReward,
    AudioKLReward,
    AudioVendiReward,
    VideoFrechetReward,
)
from accord.errors import ModelError, UserError
from accord.types import Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.frames import cropped, pixels
from reward_servers.sets.models import write_exemplars
from tests.unit.reward_servers import tiny_ast, tiny_clip

TINY = "builtin:tiny-clap"
PROMPT = Prompt("p", "a", "a", "a")


@pytest.fixture(scope="module")
def clips(world):
    return [pair[1] for pair in world["clean"]]


def distance(made, exemplars) -> float:
    """By the covariances: the trace of the root is the sum of the roots of the eigenvalues of A B A, A A = S2."""
    first, second = np.cov(made.T), np.cov(exemplars.T)
    values, vectors = np.linalg.eigh(second)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(half @ first @ half).clip(1e-16) - 1e-16)
    return float(np.square(made.mean(0) - exemplars.mean(0)).sum() + np.trace(first + second) - 2 * roots.sum())


def heard(clips) -> np.ndarray:
    """CLAP's embeddings by the library: the clips are one window each."""
    model, extractor = (one.from_pretrained(SHIPPED[TINY]) for one in (ClapModel, ClapFeatureExtractor))
    rows = []
    for clip in clips:
        made = extractor(clip.audio_CS.mean(0), sampling_rate=16_000, padding="repeatpad", return_tensors="pt")
        with torch.no_grad():
            out = model.eval().get_audio_features(made["input_features"].float(), is_longer=torch.zeros(1, 1).bool())
        rows.append(torch.nn.functional.normalize(out.pooler_output[0], dim=0).double().numpy())
    return np.stack(rows)


def test_the_distance_of_claps_embeddings_is_that_of_the_covariances(clips, tmp_path):
    spec = AudioFrechetReward(embedder="clap", path=TINY, exemplars=str(tmp_path / "e"))
    write_exemplars(spec, clips[:8])
    assert not list(spec.problems(None, ModelFacts()))
    prompts, groups = [PROMPT, PROMPT], [clips[8:10], clips[10:12]]
    first, second = score_groups(build(spec), prompts, groups)
    made, exemplars = heard(clips[8:12]), heard(clips[:8])
    assert first.components["distance"][0] == pytest.approx(distance(made, exemplars), abs=2e-5)
    without = distance(made[1:], exemplars)
    assert first.values[0] == pytest.approx(without - distance(made, exemplars), abs=4e-5)
    assert np.std([*first.values, *second.values]) > 1e-3


def test_vendi_over_clap_hears_what_differs(clips):
    model = build(AudioVendiReward(embedder="clap", path=TINY))
    (scores,) = score_groups(model, [PROMPT], [[clips[0]] * 3 + [clips[1]]])
    assert scores.values[3] > 0 > scores.values[0] and len(model.weights_digest) == 64
    rows = heard(clips[:2])
    alike = float(rows[0] @ rows[1])
    values = np.linalg.eigvalsh(np.array([[0.75, alike * np.sqrt(0.1875)], [alike * np.sqrt(0.1875), 0.25]]))
    assert scores.components["vendi"][0] == pytest.approx(np.exp(-(values * np.log(values)).sum()), abs=1e-5)


def test_rows_of_clip_are_its_frames_mean(clips, tmp_path):
    tiny_clip.write_clip(tmp_path / "clip")
    spec = VideoFrechetReward(embedder="clip", path=str(tmp_path / "clip"), exemplars=str(tmp_path / "e"))
    stills = [replace(clip, video_FHWC=np.repeat(clip.video_FHWC[:1], 9, axis=0)) for clip in clips[:4]]
    row = build_with(spec, stills).embedder(stills[0])
    library = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    with torch.no_grad():
        out = library.get_image_features(pixels([stills[0].video_FHWC[0]], cropped, 32)).pooler_output[0]
    np.testing.assert_allclose(row, torch.nn.functional.normalize(out, dim=0), atol=1e-6)


def build_with(spec, clips):
    write_exemplars(spec, clips)
    return build(spec)


def kl(first, second) -> float:
    return float((first * np.log(first / second)).sum())


def test_classes_of_sound_by_the_library_and_their_measures_by_hand(clips, tmp_path):
    state = tiny_ast.state_dict()
    state["classifier.dense.weight"] *= 8.0
    tiny_ast.write_checkpoint(tmp_path / "ast-finetuned-audioset-10-10-0.4593", state)
    sounds = [replace(clip, audio_CS=clip.audio_CS[:, :20_000]) for clip in clips[:7]]  # one window
    classifier = ASTForAudioClassification.from_pretrained(tmp_path / "ast-finetuned-audioset-10-10-0.4593").eval()
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "ast-finetuned-audioset-10-10-0.4593")
    with torch.no_grad():
        made = extractor([clip.audio_CS.mean(0) for clip in sounds], sampling_rate=16_000, return_tensors="pt")
        rows = torch.softmax(classifier(made["input_values"]).logits.double(), dim=1).numpy()
    step, exemplars = rows[:4], rows[4:]

    def inception(of):
        return float(np.exp(np.mean([kl(row, of.mean(0)) for row in of])))

    def divergence(of):
        return kl(exemplars.mean(0), of.mean(0))

    (scores,) = score_groups(build(AudioInceptionReward(path=str(tmp_path))), [PROMPT], [sounds[:4]])
    assert scores.components["inception"] == pytest.approx([inception(step)] * 4, rel=1e-4)
    wanted = [inception(step) - inception(np.delete(step, place, 0)) for place in range(4)]
    assert scores.values == pytest.approx(wanted, abs=1e-4) and np.ptp(wanted) > 5e-3
    spec = AudioKLReward(path=str(tmp_path), exemplars=str(tmp_path / "e"))
    (scores,) = score_groups(build_with(spec, sounds[4:]), [PROMPT], [sounds[:4]])
    assert scores.components["divergence"] == pytest.approx([divergence(step)] * 4, rel=1e-3)
    wanted = [divergence(np.delete(step, place, 0)) - divergence(step) for place in range(4)]
    assert scores.values == pytest.approx(wanted, abs=1e-4) and np.ptp(wanted) > 5e-3
    assert not list(spec.problems(None, ModelFacts()))


def test_a_classifier_of_other_classes_is_refused_before_it_is_loaded(tmp_path):
    tiny_ast.write_checkpoint(tmp_path, id2label={"0": "yes", "1": "no"})
    ((where, what),) = AudioInceptionReward(path=str(tmp_path)).problems(None, ModelFacts())
    assert where == "path" and "id2label has 2 labels" in what


def test_exemplars_of_other_weights_are_refused(clips, tmp_path):
    tiny_clip.write_clip(tmp_path / "clip")
    spec = VideoFrechetReward(embedder="clip", path=str(tmp_path / "clip"), exemplars=str(tmp_path / "e"))
    before = build_with(spec, clips[:4]).weights_digest
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1e-3
    save_file(weights, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"(?s)with other weights of clip .*accord rewards exemplars video_frechet"):
        build(spec)
    assert build_with(spec, clips[:4]).weights_digest != before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"embedder": "clap"}, "name the directory of the clap model"),
        ({"path": "/models/clap"}, "log_mel has no weights"),
    ],
)
def test_weights_and_embedder_belong_together(fields, told):
    spec = AudioVendiReward(**fields)
    ((where, what),) = spec.problems(None, None)
    assert where == "path" and told in what
    with pytest.raises(UserError, match=told):
        build(spec)


def test_a_directory_of_another_model_is_found_before_it_is_loaded(tmp_path):
    tiny_clip.write_clip(tmp_path / "clip")
    spec = AudioVendiReward(embedder="clap", path=str(tmp_path / "clip"))
    ((where, what),) = spec.problems(None, ModelFacts())
    assert where == "path" and "preprocessor_config.json" in what
    (named,) = spec.files()
    assert named.place == ("path",) and named.path == str(tmp_path / "clip")
