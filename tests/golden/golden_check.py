"""Runs every golden comparison on a folder of numbers that the original MT3 returned.

    python tests/golden_check.py tests/golden

prints one line per file: name, cases compared, worst error as a share of what is tolerated (0 where
equality is exact), ok or not. Exit code 0 only if all hold. The folder's README.md describes what each
file holds; any other folder of that layout works too. `tests/golden/test_golden.py` runs the same checks.
"""

from __future__ import annotations

import gzip
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_convert
import golden_metrics
import golden_network
import golden_spectrogram
import numpy as np

from mt3data.music import detokenizer, fast_tokenizer, midi, notes, tokenizer, vocabulary
from mt3data.music.notes import COLUMNS, Notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.data import merge_targets

Check = Callable[[Path], tuple[int, float]]  # folder -> (cases, worst error / tolerance)


def load(path: Path) -> Any:
    """JSON, gzipped or not."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as file:
            return json.load(file)
    return json.loads(path.read_text("utf-8"))


def same_notes(ours: Notes, theirs: dict[str, list], time_tolerance: float = 0.0) -> float:
    """Asserts equal notes in equal order; the worst time error as a share of the tolerance."""
    expected, worst = Notes.from_columns(theirs), 0.0
    assert len(ours) == len(expected), f"{len(ours)} notes, expected {len(expected)}"
    for name in COLUMNS:
        a, b = getattr(ours, name), getattr(expected, name)
        if name in ("onset", "offset") and time_tolerance and len(a):
            worst = max(worst, float(np.abs(a - b).max()) / time_tolerance)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert worst <= 1, f"times differ by {worst:.3g} of the tolerance"
    return worst


def check_vocabulary(folder: Path) -> tuple[int, float]:
    """vocabulary.json: ranges, ids, special ids, bins, granularities."""
    cases = 0
    for entry in load(folder / "vocabulary.json").values():
        config = VocabularyConfig(
            entry["num_velocity_bins"], entry["steps_per_second"], entry["max_shift_seconds"]
        )
        codec = vocabulary.Codec(config)
        for event_type, (first, last) in entry["event_type_range"].items():
            assert codec.type_range(event_type) == (first, last), event_type
        for event_type, value, codec_id, token in entry["events"]:
            event = vocabulary.Event(event_type, value)
            assert codec.encode(event) == codec_id == token - vocabulary.NUM_SPECIAL_IDS
            assert codec.decode(codec_id) == event
        for event_type, value, error in entry["encode_errors"]:
            assert error == "ValueError" and _raises(
                codec.encode, vocabulary.Event(event_type, value)
            )
        for index, event_type, value in entry["decode_index_errors"]:
            if event_type == "ValueError":
                assert _raises(codec.decode, index), index
            else:
                assert codec.decode(index) == (event_type, value)
        assert codec.num_events == entry["num_classes"]
        assert config.max_shift_steps == entry["max_shift_steps"]
        assert vocabulary.vocabulary_size(config) == entry["vocab_size"]
        assert vocabulary.num_embeddings(config) == entry["num_embeddings"]
        assert (
            entry["pad_id"], entry["eos_id"], entry["unk_id"],
        ) == (vocabulary.PAD_ID, vocabulary.EOS_ID, vocabulary.UNK_ID)  # fmt: skip
        for token, expected in entry["decode_single"]:
            got = vocabulary.tokens_to_event_ids(np.array([token]), config).tolist()
            assert got == ([] if expected == -1 else [expected]), token
        for case in entry["decode_cases"]:
            got = vocabulary.tokens_to_event_ids(np.array(case["ids"]), config).tolist()
            expected = case["decode_tf"] or []  # null where the original was given no ids
            assert got == (expected[: expected.index(-1)] if -1 in expected else expected)
        bins = entry["num_velocity_bins"]
        assert vocabulary.velocity_to_bin(np.arange(128), bins).tolist() == entry["velocity_to_bin"]
        back = [vocabulary.bin_to_velocity(b, bins) for b in range(bins + 1)]
        assert back == entry["bin_to_velocity"]
        for granularity, programs in entry["program_map"].items():
            assert vocabulary.apply_granularity(np.arange(128), granularity).tolist() == programs
            mapped = [_map_program(i, granularity, codec) for i in entry["granularity"]["tokens"]]
            assert [i for i in mapped if i is not None] == entry["granularity"][granularity]
        cases += sum(len(v) for v in entry.values() if isinstance(v, list))
    return cases, 0.0


def _map_program(event_id: int, granularity: str, codec: vocabulary.Codec) -> int | None:
    event = codec.decode(event_id)
    if event.type != "program":
        return event_id
    if granularity == "flat":
        return None
    program = int(vocabulary.apply_granularity(np.array(event.value), granularity))
    return codec.encode(vocabulary.Event("program", program))


def _raises(function: Callable, argument: Any) -> bool:
    try:
        function(argument)
    except ValueError:
        return True
    return False


def check_tokens(folder: Path) -> tuple[int, float]:
    """tokens.json.gz: every variant of every segment of every sequence.

    Where our rule differs from the original (module docstring of mt3data/music/tokenizer.py) our own target
    is asserted: a segment with a tie section that starts after the last event, and no notes at all.
    """
    data, cases = load(folder / "tokens.json.gz"), 0
    for variant, sequences in data["variants"].items():
        spec, granularity = variant.split("/")
        bins, encoding = spec.removeprefix("vb").split("_")
        config = VocabularyConfig(int(bins), encoding=encoding, granularity=granularity)
        silent = [
            vocabulary.NUM_SPECIAL_IDS + vocabulary.Codec(config).first["tie"],
            vocabulary.EOS_ID,
        ]
        for name, targets in sequences.items():
            sequence = data["sequences"][name]
            track = Notes.from_columns(sequence["notes"])
            if sequence["ccs"]:
                track = midi.apply_sustain(track, sequence["ccs"])
            events = fast_tokenizer.EventTable.from_notes(track, config)
            last_step = events.time_step[-1] if len(events.time_step) else -1
            track_frames = sequence["num_samples"] // 128 + 1
            segments = data["segments"][name]
            for (start, n_frames, _), target in zip(segments, targets, strict=True):
                ours = fast_tokenizer.encode(events, start, n_frames, track_frames).tolist()
                plain = tokenizer.tokenize(track, start, n_frames, track_frames, config)
                assert ours == plain, (variant, name, start, n_frames, ours, plain)
                after_the_end = tokenizer.first_time_step(start, config) > last_step
                if encoding == "ties" and after_the_end:
                    assert ours == silent, (variant, name, start)
                else:
                    assert ours == target, (variant, name, start, n_frames, ours, target)
                cases += 1
    return cases, 0.0


def check_token_indices(folder: Path) -> tuple[int, float]:
    """token_indices.npz: which events each single frame owns.

    The original indexes a list that holds one shift per step; our crops of one frame must hold the
    same events, and, before the last event, the same tie section.
    """
    data, cases = load(folder / "tokens.json.gz"), 0
    with np.load(folder / "token_indices.npz") as file:
        names = sorted({key.rsplit("/", 1)[0] for key in file.files})
        for name in names:
            (variant, sequence_name), part = name.split("/"), {}
            for column in ("targets", "state_events", "input_event_start_indices",
                           "input_event_end_indices", "input_state_event_indices"):  # fmt: skip
                part[column] = file[f"{name}/{column}"]
            bins, encoding = variant.removeprefix("vb").split("_")
            config = VocabularyConfig(int(bins), encoding=encoding)
            sequence = data["sequences"][sequence_name]
            track = Notes.from_columns(sequence["notes"])
            if sequence["ccs"]:
                track = midi.apply_sustain(track, sequence["ccs"])
            cases += _compare_frames(fast_tokenizer.EventTable.from_notes(track, config), part)
    return cases, 0.0


def _compare_frames(events: fast_tokenizer.EventTable, part: dict[str, np.ndarray]) -> int:
    codec = vocabulary.Codec(events.config)
    tie, last_shift = codec.first["tie"], events.config.max_shift_steps
    pitches = np.concatenate([
        np.arange(first, last + 1) for first, last in map(codec.type_range, ("pitch", "drum"))
    ])  # fmt: skip
    starts, ends = part["input_event_start_indices"], part["input_event_end_indices"]
    last_step = events.time_step[-1] if len(events.time_step) else -1
    for frame in range(len(starts)):
        theirs = part["targets"][starts[frame] : ends[frame]]
        ours = fast_tokenizer.encode(events, frame, 1, len(starts)).astype(np.int64)[:-1]
        ours -= vocabulary.NUM_SPECIAL_IDS
        if events.config.encoding == "ties":
            cut = int(np.flatnonzero(ours == tie)[0])
            if tokenizer.first_time_step(frame, events.config) <= last_step:
                state = part["state_events"][part["input_state_event_indices"][frame] :]
                state = state[: int(np.flatnonzero(state == tie)[0])]
                assert np.isin(ours[:cut], state).all()
                assert ours[:cut][np.isin(ours[:cut], pitches)].tolist() == state[1::2].tolist()
            ours = ours[cut + 1 :]
        assert ours[np.isin(ours, pitches)].tolist() == theirs[np.isin(theirs, pitches)].tolist(), (
            frame
        )
        assert (theirs > last_shift).any() == (ours > last_shift).any(), frame
    return len(starts)


def check_notes_ops(folder: Path) -> tuple[int, float]:
    """notes_ops.json: trimming, sustain, instrument numbers."""
    data = load(folder / "notes_ops.json")
    for case in data["trim_overlapping_notes"]:
        same_notes(notes.trim_overlapping(Notes.from_columns(case["input"])), case["output"])
    for case in data["apply_sustain_control_changes"]:
        same_notes(
            midi.apply_sustain(Notes.from_columns(case["input"]), case["ccs"]), case["output"]
        )
    for case in data["assign_instruments"]:
        same_notes(notes.assign_instruments(Notes.from_columns(case["input"])), case["output"])
    return sum(len(group) for group in data.values()), 0.0


def check_midi(folder: Path) -> tuple[int, float]:
    """midi.json and its .mid files: reading, with and without the sustain pedal."""
    worst, cases = 0.0, load(folder / "midi.json")
    for case in cases:
        for sustain, expected in ((False, case["read_back"]), (True, case["after_sustain"])):
            ours = midi.read_midi(folder / case["file"], sustain=sustain)[0]
            worst = max(worst, same_notes(ours, expected, time_tolerance=1e-6))
    return 2 * len(cases), worst


def check_merge(folder: Path) -> tuple[int, float]:
    """merge.json: streams of several tracks into one."""
    cases = load(folder / "merge.json")
    for case in cases:
        config = VocabularyConfig(case["num_velocity_bins"])
        parts = [part[: part.index(0)] if 0 in part else part for part in case["targets"]]
        assert merge_targets.merge_events(parts, config) == case["merged"], case["source"]
    return len(cases), 0.0


def check_detokenize(folder: Path) -> tuple[int, float]:
    """detokenize.json.gz: notes, invalid and dropped counts, from clean and corrupted tokens."""
    worst, cases = 0.0, load(folder / "detokenize.json.gz")
    for case in cases:
        config = VocabularyConfig(case["num_velocity_bins"], encoding=case["spec"])
        predictions = [case["predictions"][i] for i in case["order"]]
        decoded = detokenizer.decode_segments(
            [(p["start_time"], np.array(p["ids"], dtype=np.int64)) for p in predictions], config
        )
        assert (decoded.invalid, decoded.dropped) == (case["invalid"], case["dropped"]), case[
            "kind"
        ]
        worst = max(worst, same_notes(decoded.notes, case["notes"], time_tolerance=1e-9))
        total = float(decoded.notes.offset.max()) if len(decoded.notes) else 0.0
        assert abs(total - case["total_time"]) <= 1e-9
    return len(cases), worst


def check_start_times(folder: Path) -> tuple[int, float]:
    """start_times.json: the original's rounding of segment starts, in both precisions."""
    data, worst, cases = load(folder / "start_times.json"), 0.0, 0
    for key, rounding in (("start_times", "float32"), ("start_times_float64_input", "float64")):
        for n_frames, times in data[key].items():
            ours = [
                tokenizer.segment_start(k * int(n_frames), VocabularyConfig(), rounding)
                for k in range(len(times))
            ]
            worst = max(worst, float(np.abs(np.subtract(ours, times)).max()) / 1e-9)
            cases += len(times)
    assert worst <= 1, f"start times differ by {worst:.3g} of the tolerance"
    return cases, worst


CHECKS: dict[str, Check] = {
    "vocabulary.json": check_vocabulary,
    "tokens.json.gz": check_tokens,
    "token_indices.npz": check_token_indices,
    "notes_ops.json": check_notes_ops,
    "midi.json": check_midi,
    "merge.json": check_merge,
    "detokenize.json.gz": check_detokenize,
    "start_times.json": check_start_times,
    "spectrogram.npz": golden_spectrogram.check_spectrogram,
    **golden_metrics.CHECKS,
    **golden_network.CHECKS,
    **golden_convert.CHECKS,
}


def main(folder: Path) -> int:
    """Runs all checks; 0 if every one holds."""
    failures = 0
    for name, check in CHECKS.items():
        try:
            cases, worst = check(folder)
            left_out = golden_network.LEFT_OUT.get(name)
            print(
                f"{name:34} {cases:6} cases   worst error {worst:8.2g} of tolerance   ok"
                + (f"   (left out: {left_out})" if left_out else ""),
                flush=True,
            )
        except Exception as error:  # one line per file, whatever goes wrong with it
            failures += 1
            print(f"{name:34} NOT OK   {type(error).__name__}: {str(error)[:300]}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python tests/golden_check.py DIR   (a folder laid out like tests/golden)")
    sys.exit(main(Path(sys.argv[1])))
