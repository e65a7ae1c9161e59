import pytest

from accord.seeds import Purpose, derive_seed

KNOWN = {
    Purpose.PROMPT_ORDER: ((7, Purpose.PROMPT_ORDER, 0, 1), 6636430267279050975),
    Purpose.SAMPLE: ((7, Purpose.SAMPLE, 1, 0, 3), 967638834403379581),
    Purpose.SHARED_START: ((7, Purpose.SHARED_START, 1, 0), 4720586460784626396),
    Purpose.WINDOW: ((7, Purpose.WINDOW, 1), 3341549036567618777),
    Purpose.HELD_OUT: ((7, Purpose.HELD_OUT, 0, 1), 4133023337196703074),
    Purpose.START_NOISE: ((3, Purpose.START_NOISE.at("video")), 3367081972932718686),
    Purpose.STEP_NOISE: ((3, Purpose.STEP_NOISE.at("audio", 2)), 5395045331736746361),
    Purpose.LOSS_NOISE: ((3, Purpose.LOSS_NOISE.at("audio")), 648071999154675082),
    Purpose.ADAPTER: ((7, Purpose.ADAPTER, "blocks.0.to_q.lora_A.weight"), 8273733506821801114),
    Purpose.LOSS_SIGMA: ((7, Purpose.LOSS_SIGMA, 2, 1, 0, 4), 7734129708954523678),
    Purpose.LOSS_DRAW: ((7, Purpose.LOSS_DRAW, 2, 1, 0, 1), 6899541919176062691),
    Purpose.SHUFFLED_SOUND: ((7, Purpose.SHUFFLED_SOUND, 1), 8468683191978979839),
    Purpose.BOOTSTRAP: ((Purpose.BOOTSTRAP, 7, "sync", "offset"), 7212847414258933792),
    Purpose.REWARD_PAUSE: ((Purpose.REWARD_PAUSE, "sync", "p1", 2), 5351607182483027897),
}


@pytest.mark.parametrize("purpose", Purpose)
def test_a_seed_never_moves(purpose):
    parts, expected = KNOWN[purpose]
    assert derive_seed(*parts) == expected


@pytest.mark.parametrize("purpose", Purpose)
def test_a_purpose_is_what_its_string_is(purpose):
    assert derive_seed(7, purpose, 1) == derive_seed(7, str(purpose.value), 1)


def test_types_of_parts_count():
    assert derive_seed(1, "2") != derive_seed("1", 2) != derive_seed(1, 2)
