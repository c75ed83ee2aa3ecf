"""Measures the speed of decoding, without a cache and with Hugging Face's generate for comparison.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/decode.py    # under 4 minutes; needs the extra [bench]
    python benchmarks/decode.py --hours 2        # memory of a long recording, a small model
    taskset -c 1 python benchmarks/decode.py --bf16 data/demo    # bf16 against float32, made by `mt3data synth`

The model has MT3's sizes and random weights. 128 tokens are forced in every segment. Tokens per
CPU-second are counted in process time on one thread, without encoding, as the best of two alternating
rounds. All decoders start from the same encoded frames. Without a cache every 16th step is timed and
counted 16 times. Hugging Face's T5 has the same sizes and in addition a relative position bias.
Transcribing runs from a file to notes, with 64 tokens forced per segment, on two threads unless
--threads is given. On a busy machine two threads are slower than one.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from mt3data.music.notes import Notes
from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, VocabularyConfig, get_codec
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.constraint import TokenConstraint
from mt3train.transcription.decode import DecodingConfig, SegmentDecoder
from mt3train.transcription.transcribe import Transcriber, transcribe
from mt3train.weights.checkpoint import CheckpointInfo

AIMS = {1: 50, 8: 200, 32: 280}  # tokens per CPU-second by batch, of greedy decoding
BATCHES = tuple(AIMS)
REAL_TIME = 5  # aim of transcribing, on two cores
TOKENS, SAMPLED, ROUNDS, FRAMES = 128, 16, 2, 256
SMALL = ModelConfig(
    emb_dim=256, num_heads=4, num_encoder_layers=3, num_decoder_layers=3, mlp_dim=512
)


def random_model(config: ModelConfig) -> MT3:
    """One that never ends a segment: EOS has the logit 0, and some of the others are positive."""
    torch.manual_seed(0)
    model = MT3(config).eval()
    with torch.no_grad():
        model.decoder.logits_dense.weight[EOS_ID] = 0.0
    return model


def cpu_seconds(work: Callable[[], object]) -> float:
    """Process time of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ours(model: MT3, encoded_BFD: Tensor) -> Callable[[], object]:
    """Decoding as `mt3train transcribe` does it."""
    decoder = SegmentDecoder(
        model,
        VocabularyConfig(),
        DecodingConfig(len(encoded_BFD)),
        n_frames=FRAMES,
        max_length=TOKENS,
    )
    decoder.encode = lambda mels: torch.stack(mels)  # type: ignore[assignment, method-assign]

    def work() -> None:
        found = list(decoder.decode(iter(encoded_BFD)))
        assert sum(len(one.tokens) for one in found) == len(encoded_BFD) * TOKENS

    return work


def without_cache(model: MT3, encoded_BFD: Tensor) -> float:
    """CPU-seconds, all steps counted, where each runs the decoder over all tokens so far."""
    seconds = 0.0
    with torch.inference_mode():
        cross = model.decoder.cross_keys_values(encoded_BFD)
        for length in range(SAMPLED, TOKENS + 1, SAMPLED):
            inputs = torch.randint(3, 1000, (len(encoded_BFD), length - SAMPLED // 2))
            seconds += SAMPLED * cpu_seconds(lambda i=inputs: model.decoder(i, cross))
    return seconds


def hugging_face(config: ModelConfig) -> Callable[[Tensor], Callable[[], object]]:
    """Its T5 of these sizes, decoding greedily with its cache."""
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    model = T5ForConditionalGeneration(T5Config(
        vocab_size=config.vocab_size, d_model=config.emb_dim, d_kv=config.head_dim,
        d_ff=config.mlp_dim, num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers, num_heads=config.num_heads,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=EOS_ID,
    )).eval()  # fmt: skip

    def prepared(encoded_BFD: Tensor) -> Callable[[], object]:
        def work() -> None:
            said = model.generate(
                encoder_outputs=BaseModelOutput(encoded_BFD), max_new_tokens=TOKENS,
                min_new_tokens=TOKENS, num_beams=1, do_sample=False, use_cache=True,
            )  # fmt: skip
            assert said.shape == (len(encoded_BFD), TOKENS + 1)

        return work

    return prepared


def compare() -> None:
    """The table of decoders."""
    torch.set_num_threads(1)
    model = random_model(ModelConfig())
    generate = hugging_face(model.config)
    mel = torch.randn(8, FRAMES, 512)
    with torch.inference_mode():
        encoding = min(cpu_seconds(lambda: model.encode(mel[:1])) for _ in range(3))
        encoded = model.encode(mel).repeat(max(BATCHES) // 8, 1, 1).clone()
    print(f"encoding a segment: {1000 * encoding:.0f} ms of one core\n")
    print(f"{'tokens per CPU-second':24}" + "".join(f"{f'batch {b}':>12}" for b in BATCHES))
    print(f"{'aim':24}" + "".join(f"{aim:12}" for aim in AIMS.values()))
    rates: dict[str, list[float]] = {
        name: [] for name in ("ours", "Hugging Face, cache", "no cache")
    }
    for batch in BATCHES:
        given, total = encoded[:batch].clone(), batch * TOKENS
        works = {"ours": ours(model, given), "Hugging Face, cache": generate(given)}
        best = dict.fromkeys(works, np.inf)
        for _ in range(ROUNDS):
            for name, work in works.items():
                best[name] = min(best[name], cpu_seconds(work))
        best["no cache"] = without_cache(model, given)
        for name, seconds in best.items():
            rates[name].append(total / seconds)
    for name, values in rates.items():
        print(f"{name:24}" + "".join(f"{value:12.0f}" for value in values))
    for name in list(rates)[1:]:
        ratios = [mine / other for mine, other in zip(rates["ours"], rates[name], strict=False)]
        print(f"{'times ' + name:24}" + "".join(f"{ratio:12.1f}" for ratio in ratios))


def constraint_cost() -> None:
    """Prints the time of choosing a token, with and without constraints, per step of a batch."""
    n_slots, rounds = 16, 200
    vocabulary, size = VocabularyConfig(), ModelConfig().vocab_size
    constraint = TokenConstraint(vocabulary, size, n_slots, torch.device("cpu"))
    for slot in range(n_slots):
        constraint.reset(slot)
    # Ties of rising pitches, so that no token breaks a rule.
    logits = torch.zeros(rounds, n_slots, size)
    first = get_codec(vocabulary).first
    for step in range(rounds):
        kind, value = ("pitch", step // 2 % 128) if step % 2 else ("program", step // 2 % 128)
        logits[step, :, first[kind] + NUM_SPECIAL_IDS + value] = 1.0
    with torch.inference_mode():
        plain = cpu_seconds(lambda: [step.argmax(-1) for step in logits]) / rounds
        constrained = cpu_seconds(lambda: [constraint.choose(step) for step in logits]) / rounds
    print(
        f"choosing {n_slots} tokens: {1e6 * plain:.0f} us, constrained {1e6 * constrained:.0f} us"
    )


def transcribe_noise(
    config: ModelConfig, seconds: float, tokens: int, batch: int, threads: int
) -> None:
    """Real-time factor and memory of a recording of noise, written and read in blocks."""
    torch.set_num_threads(threads)
    model, rng = random_model(config), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.wav"
        with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
            for start in np.arange(0, seconds, 10):
                n_samples = int(16000 * min(10, seconds - start))
                file.write((0.1 * rng.standard_normal(n_samples)).astype(np.float32))
        started, busy = time.perf_counter(), time.process_time()
        info = CheckpointInfo(model=config)
        result = transcribe(model, info, path, DecodingConfig(batch), max_length=tokens)
        took, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{seconds:.0f} s of audio, {parameters:.1f} M parameters, {tokens} tokens in each of "
        f"{result.n_segments} segments, batch {batch}, {threads} threads: {took:.1f} s, "
        f"{seconds / took:.1f} x real time (aim: {REAL_TIME}), {busy:.1f} CPU-seconds; at most "
        f"{peak:,.0f} MB in the process"
    )


def compare_precisions(pieces: Path) -> None:
    """Prints CPU-seconds in bf16 and float32: the package's weights on pieces, and MT3's size."""
    torch.set_num_threads(1)
    print(f"bf16 instructions: {torch.cpu._is_avx512_bf16_supported()}")
    one, total = Transcriber.from_pretrained(), {"float32": 0.0, "bf16": 0.0}
    shared = n_notes = n_other = n_same = n_pieces = 0
    for path in sorted(pieces.rglob("mix.flac")):
        found: dict[str, Notes] = {}
        best = dict.fromkeys(total, np.inf)
        for _ in range(ROUNDS):
            for precision in total:
                decoding = DecodingConfig(constrained=True, precision=precision, passes=1)
                started = time.process_time()
                found[precision] = transcribe(one.model, one.info, path, decoding).notes
                best[precision] = min(best[precision], time.process_time() - started)
        total = {precision: total[precision] + best[precision] for precision in total}
        rows, others = (set(map(tuple, notes.to_array().tolist())) for notes in found.values())
        shared, n_notes = shared + len(rows & others), n_notes + len(rows)
        n_other, n_pieces, n_same = n_other + len(others), n_pieces + 1, n_same + (rows == others)
    print(
        f"package's weights, {n_pieces} pieces: float32 {total['float32']:.1f} CPU-s, bf16 {total['bf16']:.1f} "
        f"({total['float32'] / total['bf16']:.2f} times as fast); {n_notes} and {n_other} notes, {shared} "
        f"the same; {n_same} pieces the same"
    )
    model, mels = random_model(ModelConfig()), torch.randn(16, FRAMES, 512)
    for batch in (1, 16):
        best = dict.fromkeys(total, np.inf)
        decoders = {
            precision: SegmentDecoder(
                model, VocabularyConfig(), DecodingConfig(batch, precision=precision),
                n_frames=FRAMES, max_length=TOKENS,
            )
            for precision in total
        }  # fmt: skip
        encoding = dict(best)
        for _ in range(ROUNDS):
            for precision, decoder in decoders.items():
                seconds = cpu_seconds(lambda d=decoder, m=mels[:batch]: list(d.decode(m)))
                best[precision] = min(best[precision], seconds)
                with torch.inference_mode():
                    seconds = cpu_seconds(
                        lambda d=decoder, m=mels[:batch]: [d.encode([x]) for x in m]
                    )
                encoding[precision] = min(encoding[precision], seconds)
        for what, seconds in (("whole", best), ("encoding", encoding)):
            print(
                f"MT3's size, batch {batch}, {what}: float32 {seconds['float32']:.2f} CPU-s, bf16 "
                f"{seconds['bf16']:.2f} ({seconds['float32'] / seconds['bf16']:.2f} times as fast)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, help="only transcribe a recording of that length")
    parser.add_argument("--threads", type=int, default=2, help="for transcribing")
    parser.add_argument(
        "--bf16",
        type=Path,
        metavar="PIECES",
        help="only compare bf16 with float32, on these pieces",
    )
    given = parser.parse_args()
    if given.bf16:
        compare_precisions(given.bf16)
        return
    hours, threads = given.hours, given.threads
    if hours:
        transcribe_noise(SMALL, 3600 * hours, 16, 8, threads)
        return
    compare()
    constraint_cost()
    print()
    transcribe_noise(ModelConfig(), 49.15, 64, DecodingConfig().batch, threads)


if __name__ == "__main__":
    main()
