"""Mixing of audio: which crops, what sum, which target; the same for any number of processes."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from test_tokens import notes

from mt3data.errors import UserError
from mt3data.notes import Notes
from mt3data.reader import Batch, pad_tokens
from mt3data.tokens import encode_notes
from mt3data.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    Codec,
    VocabularyConfig,
    describe,
    tokens_to_event_ids,
)
from mt3train.mixing import MixedShards, merge_targets, mix, say_all, say_changes

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "merge.json").read_text())
TIES = VocabularyConfig()


def said(*tracks, config=TIES):
    targets = [encode_notes(track, 0, 256, 1000, config) for track in tracks]
    return ", ".join(describe(merge_targets(targets, config), config))


def test_each_note_of_a_mix_has_its_own_program():
    piano = notes((0.5, 9, 60, 80, 0, 0), (1.0, 9, 64, 80, 0, 0))
    violin = notes((0.7, 9, 80, 80, 40, 0), (1.0, 9, 82, 80, 40, 0))
    assert said(piano, violin) == (
        "tie, tie, shift 50, program 0, velocity 1, pitch 60, shift 70, program 40, pitch 80, "
        "shift 100, program 0, pitch 64, program 40, pitch 82, EOS"
    )


def test_a_mix_of_one_keeps_its_target():
    track = notes((0.5, 1, 60, 80, 5, 0), (0.6, 1, 50, 80, 7, 0), (0.7, 0.8, 36, 9, 0, 1))
    for config in (TIES, VocabularyConfig(127, encoding="noties", granularity="flat"),
                   VocabularyConfig(encoding="onsets"),
                   VocabularyConfig(granularity="midi_class")):  # fmt: skip
        target = encode_notes(track, 0, 256, 1000, config)
        assert merge_targets([target], config).tolist() == target.tolist()


def test_held_notes_of_a_mix_come_in_a_tie_section_each_from_last_to_first():
    first, second = notes((0.1, 5, 60, 80, 1, 0)), notes((0.2, 5, 50, 80, 2, 0))
    targets = [encode_notes(track, 200, 20, 1000, TIES) for track in (first, second)]
    assert ", ".join(describe(merge_targets(targets, TIES), TIES)) == (
        "program 2, pitch 50, tie, program 1, pitch 60, tie, EOS"
    )


def onsets(stream, config):
    """(step, program, pitch or drum) of each onset that a stream of codec ids says, sorted."""
    codec, step, program, velocity, found, in_shift = Codec(config), 0, 0, 1, [], False
    for event in map(codec.decode, stream):
        if event.type == "shift":
            step = step + event.value if in_shift else event.value
        in_shift = event.type == "shift"
        if event.type == "program":
            program = event.value
        if event.type == "velocity":
            velocity = event.value
        if event.type in ("pitch", "drum") and velocity:
            found.append((step, program if event.type == "pitch" else -1, event.value))
    return sorted(found)


NOTIES = [case for case in CASES if "noties" in case["source"] and len(case["targets"]) > 1]


@pytest.mark.parametrize("case", NOTIES, ids=range(len(NOTIES)))
def test_a_mix_of_golden_targets_says_every_note_of_its_parts(case):
    config = VocabularyConfig(case["num_velocity_bins"], encoding="noties")
    streams = [stream[: stream.index(0)] if 0 in stream else stream for stream in case["targets"]]
    targets = [np.append(np.array(stream) + NUM_SPECIAL_IDS, EOS_ID) for stream in streams]
    found = tokens_to_event_ids(merge_targets(targets, config), config).tolist()
    assert onsets(found, config) == sorted(o for s in streams for o in onsets(s, config))


def test_without_saying_all_first_some_notes_of_golden_mixes_change_program():
    wrong = 0
    for case in NOTIES:
        config = VocabularyConfig(case["num_velocity_bins"], encoding="noties")
        streams = [s[: s.index(0)] if 0 in s else s for s in case["targets"]]
        want = sorted(o for s in streams for o in onsets(s, config))
        wrong += onsets(case["merged"], config) != want
    assert wrong > 5


def in_full(part, first, n_frames, tie):
    """The original's events of some frames before repeats are left out, shifts as they are said."""
    state = part["state_events"][part["input_state_event_indices"][first] :].tolist()
    starts, ends = part["input_event_start_indices"], part["input_event_end_indices"]
    said, step, shifted = state[: state.index(tie) + 1], 0, False
    for event_id in part["targets"][starts[first] : ends[first + n_frames - 1]].tolist():
        if event_id == 1:
            step, shifted = step + 1, True
        else:
            said += [step] * shifted + [event_id]
            shifted = False
    return said


@pytest.mark.parametrize("first", [0, 100, 200])
@pytest.mark.parametrize("name", ["segment_crossing", "time_zero"])
def test_all_is_said_as_in_the_original_before_it_leaves_out_repeats(name, first):
    sequence = json.loads(gzip.decompress((GOLDEN / "tokens.json.gz").read_bytes()))["sequences"][
        name
    ]
    config = VocabularyConfig(127)
    with np.load(GOLDEN / "token_indices.npz") as file:
        prefix = f"vb127_ties/{name}/"
        part = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}
    track, track_frames = (
        Notes.from_columns(sequence["notes"]),
        len(part["input_state_event_indices"]),
    )
    target = encode_notes(track, first, 100, track_frames, config)
    found = say_all(tokens_to_event_ids(target, config).tolist(), config)
    assert found == in_full(part, first, 100, Codec(config).first["tie"])
    assert say_changes(found, config) == tokens_to_event_ids(target, config).tolist()


def crops_of(*rows):
    """Crops of two samples and one drum hit each, from (samples, drum)."""
    audio = np.array([samples for samples, _ in rows], np.int16)
    targets = [encode_notes(notes((0.5, 1, drum, 9, 0, 1)), 0, 256, 1000, TIES) for _, drum in rows]
    n = len(rows)
    keys, whole = [f"k{i}" for i in range(n)], np.arange(1, n + 1, dtype=np.int32)
    return Batch(None, audio, *pad_tokens(targets), keys, np.arange(n) * 10, whole)


def test_a_mix_is_the_sum_of_its_crops_divided_by_its_peak():
    crops = crops_of(([30000, -100], 36), ([30000, 300], 38), ([0, 0], 40), ([-5, 1], 42))
    mixed = mix(crops, [np.array([0, 1]), np.array([2]), np.array([3])], TIES)
    np.testing.assert_allclose(mixed.audio, [[1, 200 / 60000], [0, 0], [-1, 0.2]], rtol=1e-6)
    assert mixed.audio.dtype == np.float32 and mixed.mel is None
    assert mixed.keys == ["k0+k1", "k2", "k3"]
    assert (mixed.n_frames.tolist(), mixed.start_frames.tolist()) == ([2, 3, 4], [0, 20, 30])
    assert ", ".join(describe(mixed.tokens[0], TIES)) == (
        "tie, tie, shift 50, velocity 1, drum 36, drum 38, EOS"
    )


class Drawn:
    """In place of IndexedShards: member m of step s has the sample 100 s + m and m + 5 tokens."""

    seed, spectrogram, vocabulary, edge, n_records, builds = 3, None, TIES, "segment", 9, []
    member = "audio"

    def n_tokens(self, step, global_batch):
        return np.arange(global_batch) + 5

    def read(self, step, global_batch, members, frames):
        rows = [([100 * step + member, 1], 36) for member in members]
        return dataclasses.replace(crops_of(*rows), keys=[f"{step}-{m}" for m in members])


def test_every_crop_of_a_step_is_in_one_mix_and_all_sizes_come_equally_often():
    groups = MixedShards(Drawn(), 4).groups(step=7, global_batch=8)
    assert np.concatenate(groups).tolist() == list(range(20))
    assert sorted(map(len, groups)) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert list(map(len, groups)) != list(map(len, MixedShards(Drawn(), 4).groups(8, 8)))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_processes_shares_the_same_mixes(world):
    mixed = MixedShards(Drawn(), 4)
    whole = mixed.batch(5, 8)
    parts = [mixed.batch(5, 8, rank, world) for rank in range(world)]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::world]
        np.testing.assert_array_equal(part.audio, whole.audio[rank::world])
        np.testing.assert_array_equal(part.lengths, whole.lengths[rank::world])
    sums = [sum(mixed.shards.n_tokens(5, 20)[int(m.split("-")[1])] for m in key.split("+"))
            for key in whole.keys]  # fmt: skip
    assert sums == sorted(sums, reverse=True)


def test_a_batch_in_which_sizes_cannot_be_equally_often_is_refused():
    with pytest.raises(UserError, match="batch=6 is not a multiple of data.mix_examples=4"):
        MixedShards(Drawn(), 4).batch(0, 6)
