"""Decoding token by token equals the full forward pass, whatever shares the batch."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mt3data.errors import UserError
from mt3data.music.vocabulary import EOS_ID, VocabularyConfig, get_codec
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.cached_decoder import CachedDecoder
from mt3train.transcription.decode import DecodedSegment, DecodingConfig, SegmentDecoder
from mt3train.transcription.programs import ProgramFilter

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


def segment_decoder(model: MT3, max_length: int = 40, **options: object) -> SegmentDecoder:
    config = DecodingConfig(**options)  # type: ignore[arg-type]
    return SegmentDecoder(model, VocabularyConfig(), config, n_frames=FRAMES, max_length=max_length)


def decode(model: MT3, mel: Tensor, max_length: int = 40, **options: object) -> list[list[int]]:
    """Returns the tokens of the segments, in their order."""
    return in_order(segment_decoder(model, max_length, **options).decode(mel))


def in_order(decoded: Iterable[DecodedSegment]) -> list[list[int]]:
    decoded = sorted(decoded, key=lambda segment: segment.index)
    assert [segment.index for segment in decoded] == list(range(len(decoded)))
    return [segment.tokens.tolist() for segment in decoded]


def greedy_without_cache(model: MT3, mel_FM: Tensor, max_length: int = 40) -> list[int]:
    """The plain way: the whole forward pass for every token."""
    said: list[int] = []
    with torch.no_grad():
        while len(said) < max_length and EOS_ID not in said:
            logits = model(mel_FM[None], torch.tensor([[*said, 0]]))
            said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_cached_decoding_equals_the_full_forward_pass_at_every_position(dtype, tolerance):
    model, mel = random_model()
    model, mel = model.to(dtype), mel[:4].to(dtype)
    targets = torch.randint(1, 30, (4, 20), generator=torch.Generator().manual_seed(0))
    cached = CachedDecoder(model, 4, 20, FRAMES)
    with torch.no_grad():
        full = model(mel, targets)
        for slot, encoded in enumerate(model.encode(mel)):
            cached.load_segment(slot, encoded)
        inputs = torch.nn.functional.pad(targets, (1, 0))
        steps = torch.stack([cached.decode_step(inputs[:, i]) for i in range(20)], 1)
    assert (steps - full).abs().max() < tolerance * full.abs().max()


def test_slots_at_different_positions_do_not_see_each_other():
    model, mel = random_model()
    cached, alone = (CachedDecoder(model, n_slots, 20, FRAMES) for n_slots in (2, 1))
    with torch.no_grad():
        encoded = model.encode(mel)
        cached.load_segment(0, encoded[0])
        cached.load_segment(1, encoded[1])
        for token in (5, 6, 7):
            cached.decode_step(torch.tensor([token, token + 10]))
        cached.load_segment(1, encoded[2])  # a new segment beside one at position 3
        alone.load_segment(0, encoded[2])
        for token in (8, 9):
            both = cached.decode_step(torch.tensor([4, token]))
            torch.testing.assert_close(both[1:], alone.decode_step(torch.tensor([token])))


def test_greedy_tokens_are_those_of_decoding_without_a_cache():
    model, mel = random_model()
    wanted = [greedy_without_cache(model, one) for one in mel]
    assert decode(model, mel, batch=4) == wanted
    assert len({len(row) for row in wanted}) > 2  # so that slots were filled again at odd times


@pytest.mark.parametrize("batch", [2, 4, 20])
def test_a_segment_does_not_depend_on_its_batch(batch):
    model, mel = random_model()
    assert decode(model, mel, batch=batch) == decode(model, mel, batch=1)


def test_a_slot_whose_segment_ended_takes_the_next_one_at_once():
    """Counts steps. No slot is computed after its segment ended, and the batch shrinks at the end."""
    model, mel = random_model()
    decoder = segment_decoder(model, batch=3)
    steps, decode_step = [], decoder.cached.decode_step
    decoder.cached.decode_step = lambda token_S: steps.append(len(token_S)) or decode_step(token_S)
    lengths = [len(segment.tokens) for segment in decoder.decode(mel)]
    assert sum(steps) == sum(lengths)
    assert max(lengths) == 40 and steps[0] == 3 and steps[-1] == 1


def test_checking_for_the_end_every_16_steps_gives_the_same_tokens():
    """As on a GPU."""
    model, mel = random_model()
    decoder = segment_decoder(model, batch=4)
    decoder.steps_per_check, decoder.encoder_batch = 16, 4
    assert in_order(decoder.decode(mel)) == decode(model, mel, batch=4)


def test_programs_that_are_not_chosen_are_never_emitted():
    """The model prefers program 40 at every position; the filter allows bass and no drums."""
    torch.manual_seed(0)
    model = MT3(replace(CONFIG, vocab_size=1536)).eval()
    program = get_codec(VocabularyConfig()).first["program"] + 3
    weight = model.decoder.logits_dense.weight.data
    weight[program + 40] = weight[program + 33] = 3 * weight[program + 40]
    weight[program + 40] *= 1.1
    mel = torch.randn(2, FRAMES, 12)
    free = {token for row in decode(model, mel) for token in row}
    bass = ProgramFilter.parse("bass")
    chosen = {token for row in decode(model, mel, programs=bass) for token in row}
    assert program + 40 in free and program + 33 in chosen
    assert not chosen & set(bass.forbidden(VocabularyConfig()))


def test_a_decoder_can_be_used_again():
    model, mel = random_model()
    decoder = segment_decoder(model, batch=4)
    first, second = (in_order(decoder.decode(mel)) for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_compiled_decoding_gives_the_same_tokens():
    model, mel = random_model()
    assert decode(model, mel, batch=3, compile=True) == decode(model, mel, batch=3)


def test_in_bf16_logits_are_near_those_of_float32():
    model, mel = random_model()
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        cached = CachedDecoder(model, 1, 4, FRAMES, dtype)
        with torch.no_grad():
            cached.load_segment(0, model.encode(mel[:1])[0])
            logits[dtype] = cached.decode_step(torch.tensor([5]))
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


def test_a_batch_beyond_memory_is_one_line():
    with pytest.raises(UserError, match="not enough memory to decode 1,000,000,000,000 segments"):
        SegmentDecoder(MT3(CONFIG), VocabularyConfig(), DecodingConfig(10**12), n_frames=8)
