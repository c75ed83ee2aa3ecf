"""Decoding token by token equals the full forward pass, whatever shares the batch."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from mt3data.music.vocabulary import EOS_ID
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.cached_decoder import Stepper
from mt3train.transcription.decode import DecodeOptions, Found, SegmentDecoder

CONFIG = ModelConfig(
    vocab_size=30, emb_dim=16, num_heads=3, head_dim=8, num_encoder_layers=1, num_decoder_layers=2,
    mlp_dim=24, n_mels=12,
)  # fmt: skip
FRAMES = 7


def random_model(eos: float = 1.3) -> tuple[MT3, Tensor]:
    """A model, and 9 segments; with a larger `eos` more of them end early."""
    torch.manual_seed(3)
    model = MT3(CONFIG).eval()
    model.decoder.logits_dense.weight.data[EOS_ID] *= eos
    return model, torch.randn(9, FRAMES, 12)


def decode(model: MT3, mel: Tensor, **options: object) -> list[Found]:
    """What is found, in the order of the segments."""
    chosen = DecodeOptions(**{"max_length": 40, **options})  # type: ignore[arg-type]
    found = SegmentDecoder(model, chosen, FRAMES).decode(mel)
    return sorted(found, key=lambda one: one.index)


def tokens(found: list[Found]) -> list[list[int]]:
    return [one.tokens.tolist() for one in found]


def greedy_without_cache(model: MT3, mel_FM: Tensor, max_length: int = 40) -> list[int]:
    """The plain way: the whole forward pass for every token."""
    said: list[int] = []
    with torch.no_grad():
        while len(said) < max_length and EOS_ID not in said:
            logits = model(mel_FM[None], torch.tensor([[*said, 0]]))
            said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("width", [1, 2])
def test_cached_decoding_equals_the_full_forward_pass_at_every_position(dtype, tolerance, width):
    model, mel = random_model()
    model, mel = model.to(dtype), mel[:4].to(dtype)
    targets = torch.randint(1, 30, (4 * width, 20), generator=torch.Generator().manual_seed(0))
    stepper = Stepper(model, 4, width, 20, FRAMES)
    with torch.no_grad():
        full = model(mel.repeat_interleave(width, 0), targets)
        for slot, encoded in enumerate(model.encode(mel)):
            stepper.fill(slot, encoded)
        inputs = torch.nn.functional.pad(targets, (1, 0))
        steps = torch.stack([stepper.step(inputs[:, i]) for i in range(20)], 1)
    assert (steps - full).abs().max() < tolerance * full.abs().max()


def test_rows_at_different_positions_do_not_see_each_other():
    model, mel = random_model()
    stepper, alone = (Stepper(model, slots, 1, 20, FRAMES) for slots in (2, 1))
    with torch.no_grad():
        encoded = model.encode(mel)
        stepper.fill(0, encoded[0])
        stepper.fill(1, encoded[1])
        for token in (5, 6, 7):
            stepper.step(torch.tensor([token, token + 10]))
        stepper.fill(1, encoded[2])  # a new segment beside one at position 3
        alone.fill(0, encoded[2])
        for token in (8, 9):
            both = stepper.step(torch.tensor([4, token]))
            torch.testing.assert_close(both[1:], alone.step(torch.tensor([token])))


def test_greedy_tokens_are_those_of_decoding_without_a_cache():
    model, mel = random_model()
    wanted = [greedy_without_cache(model, one) for one in mel]
    assert tokens(decode(model, mel, batch=4)) == wanted
    assert len({len(row) for row in wanted}) > 2  # so that slots were filled again at odd times


@functools.cache
def alone(beams: int) -> list[Found]:
    """What is found in each segment when it is the only one."""
    model, mel = random_model()
    return [decode(model, segment[None], beams=beams, batch=1)[0] for segment in mel]


@pytest.mark.parametrize("beams", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 2, 4, 20])
def test_a_segment_does_not_depend_on_its_batch(beams, batch):
    together = decode(*random_model(), beams=beams, batch=batch)
    assert [one.index for one in together] == list(range(9))
    for one, single in zip(together, alone(beams), strict=True):
        assert one.sequences.tolist() == single.sequences.tolist()
        np.testing.assert_allclose(one.scores, single.scores, rtol=1e-4)


def test_segments_that_are_done_make_room_at_once():
    """Steps, counted: refilling takes about as many as there are tokens, per slot."""
    model, mel = random_model()
    decoder = SegmentDecoder(model, DecodeOptions(batch=3, max_length=40), FRAMES)
    steps, step = [], decoder.stepper.step
    decoder.stepper.step = lambda token_R: steps.append(len(token_R)) or step(token_R)
    lengths = [len(one.tokens) for one in decoder.decode(mel)]
    assert sum(steps) == sum(lengths)  # no row ran after its end
    assert max(lengths) == 40 and steps[0] == 3 and steps[-1] == 1  # and the batch shrinks


def log_probability(model: MT3, mel_FM: Tensor, said: list[int]) -> float:
    with torch.no_grad():
        logs = model(mel_FM[None], torch.tensor([said])).log_softmax(-1)[0]
    return float(logs.gather(1, torch.tensor(said)[:, None]).sum())


def test_scores_of_a_beam_are_log_probabilities_over_the_penalty_and_beat_greedy():
    model, mel = random_model()
    better = 0
    for found, plain in zip(decode(model, mel, beams=4), decode(model, mel), strict=True):
        assert found.scores.tolist() == sorted(found.scores.tolist())
        for sequence, score in zip(found.sequences.tolist(), found.scores, strict=True):
            if EOS_ID in sequence:
                said = sequence[: sequence.index(EOS_ID) + 1]
                expected = log_probability(model, mel[found.index], said)
                expected /= ((5 + len(said)) / 6) ** 0.6
                assert score == pytest.approx(expected, abs=1e-3)
        greedy = plain.tokens.tolist()
        if EOS_ID in greedy:
            one = log_probability(model, mel[found.index], greedy) / ((5 + len(greedy)) / 6) ** 0.6
            assert found.scores[-1] >= one - 1e-3
            better += found.scores[-1] > one + 1e-3
    assert better > 0


def test_a_search_that_is_not_asked_at_once_ends_the_same():
    """As on a GPU, which is asked every 16 steps."""
    model, mel = random_model()
    for beams in (0, 3):
        decoder = SegmentDecoder(model, DecodeOptions(4, 40, beams), FRAMES)
        decoder.steps_per_question = 16
        decoder.encode_at_once = 4
        late = sorted(decoder.decode(mel), key=lambda one: one.index)
        assert tokens(late) == tokens(decode(model, mel, beams=beams, batch=4))


def test_forbidden_tokens_are_never_said():
    model, mel = random_model()
    said = {token for row in tokens(decode(model, mel)) for token in row}
    most = tuple(sorted(said - {EOS_ID}))[:5]
    assert most and not set(most) & {
        token for row in tokens(decode(model, mel, forbidden=most)) for token in row
    }
    forced = decode(model, mel, forbidden=(EOS_ID,), max_length=13)
    assert [len(one.tokens) for one in forced] == [13] * 9


def test_a_decoder_is_used_again_as_if_it_were_new():
    model, mel = random_model()
    decoder = SegmentDecoder(model, DecodeOptions(batch=4, max_length=40), FRAMES)
    first, second = ([one.tokens.tolist() for one in decoder.decode(mel)] for _ in range(2))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("beams", [0, 2])
def test_compiled_decoding_says_the_same(beams):
    model, mel = random_model()
    compiled = decode(model, mel, batch=3, beams=beams, compile=True)
    assert tokens(compiled) == tokens(decode(model, mel, batch=3, beams=beams))


def test_in_bf16_logits_are_near_those_of_float32():
    model, mel = random_model()
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        stepper = Stepper(model, 1, 1, 4, FRAMES, dtype)
        with torch.no_grad():
            stepper.fill(0, model.encode(mel[:1])[0])
            logits[dtype] = stepper.step(torch.tensor([5]))
    assert logits[torch.bfloat16].dtype == torch.float32
    worst = (logits[torch.bfloat16] - logits[torch.float32]).abs().max()
    assert 0 < worst < 0.05 * logits[torch.float32].abs().max()
    assert len(decode(model, mel, precision="bf16")) == 9


def test_nothing_to_decode_gives_nothing():
    model, mel = random_model()
    assert decode(model, mel[:0]) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_length": 2049}, "max_length=2049"),
        ({"max_length": 0}, "max_length=0"),
        ({"batch": 0}, "batch=0"),
        ({"precision": "fp8"}, "precision='fp8'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    model, mel = random_model()
    with pytest.raises(ValueError, match=message):
        decode(model, mel, **options)
