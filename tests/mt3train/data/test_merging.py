"""Merging of targets: golden numbers, and facts to check by hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from note_rows import notes

from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    Codec,
    VocabularyConfig,
    describe_tokens,
    tokens_to_event_ids,
)
from mt3train.data.merge_targets import (
    merge_events,
    merge_targets,
    remove_redundant_state_changes,
    repeat_state_before_every_note,
)

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden"
CASES = json.loads((GOLDEN / "merge.json").read_text())
TIES = VocabularyConfig()


def merged(streams, config):
    whole = [stream[: stream.index(0)] if 0 in stream else stream for stream in streams]
    return merge_events(whole, config)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_parts_merge_as_the_original_s_do(case):
    assert merged(case["targets"], VocabularyConfig(case["num_velocity_bins"])) == case["merged"]


def test_parts_merge_by_time_and_keep_their_tie_tokens():
    tie, program, pitch = 1131, 1132, 1061
    first = [tie, 10, program, pitch, 20, pitch + 1]
    second = [tie, 10, program + 7, pitch + 2, 0, 0]
    assert merged([first, second], TIES) == [
        tie, tie, 10, program, pitch, program + 7, pitch + 2, 20, pitch + 1,
    ]  # fmt: skip


def test_a_shift_beyond_the_longest_takes_several_and_one_without_an_event_is_dropped():
    pitch = 1061
    assert merged([[1000, 1000, 500, pitch], [1000, 7, pitch, 9]], TIES) == [
        1000, 7, pitch, 1000, 1000, 500, pitch,
    ]  # fmt: skip


def merged_words(*tracks, config=TIES):
    targets = [encode_notes(track, 0, 256, 1000, config) for track in tracks]
    return ", ".join(describe_tokens(merge_targets(targets, config), config))


def test_each_note_of_a_mix_has_its_own_program():
    piano = notes((0.5, 9, 60, 80, 0, 0), (1.0, 9, 64, 80, 0, 0))
    violin = notes((0.7, 9, 80, 80, 40, 0), (1.0, 9, 82, 80, 40, 0))
    assert merged_words(piano, violin) == (
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
    assert ", ".join(describe_tokens(merge_targets(targets, TIES), TIES)) == (
        "program 2, pitch 50, tie, program 1, pitch 60, tie, EOS"
    )


def onsets(stream, config):
    """(step, program, pitch or drum) of each onset in a stream of event ids, sorted."""
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
def test_a_mix_of_golden_targets_has_every_note_of_its_parts(case):
    config = VocabularyConfig(case["num_velocity_bins"], encoding="noties")
    streams = [stream[: stream.index(0)] if 0 in stream else stream for stream in case["targets"]]
    targets = [np.append(np.array(stream) + NUM_SPECIAL_IDS, EOS_ID) for stream in streams]
    found = tokens_to_event_ids(merge_targets(targets, config), config).tolist()
    assert onsets(found, config) == sorted(o for s in streams for o in onsets(s, config))


def test_without_repeated_state_some_notes_of_golden_mixes_change_program():
    wrong = 0
    for case in NOTIES:
        config = VocabularyConfig(case["num_velocity_bins"], encoding="noties")
        streams = [s[: s.index(0)] if 0 in s else s for s in case["targets"]]
        expected = sorted(o for s in streams for o in onsets(s, config))
        wrong += onsets(case["merged"], config) != expected
    assert wrong > 5


def in_full(part, first, n_frames, tie):
    """The original's events of some frames before repeats are left out, with shifts."""
    state = part["state_events"][part["input_state_event_indices"][first] :].tolist()
    starts, ends = part["input_event_start_indices"], part["input_event_end_indices"]
    events, step, shifted = state[: state.index(tie) + 1], 0, False
    for event_id in part["targets"][starts[first] : ends[first + n_frames - 1]].tolist():
        if event_id == 1:
            step, shifted = step + 1, True
        else:
            events += [step] * shifted + [event_id]
            shifted = False
    return events


@pytest.mark.parametrize("first", [0, 100, 200])
@pytest.mark.parametrize("name", ["segment_crossing", "time_zero"])
def test_the_repeated_state_is_what_the_original_has_before_it_removes_repeats(name, first):
    sequences = json.loads(gzip.decompress((GOLDEN / "tokens.json.gz").read_bytes()))["sequences"]
    track, config = Notes.from_columns(sequences[name]["notes"]), VocabularyConfig(127)
    with np.load(GOLDEN / "token_indices.npz") as file:
        prefix = f"vb127_ties/{name}/"
        part = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}
    track_frames = len(part["input_state_event_indices"])
    target = encode_notes(track, first, 100, track_frames, config)
    ids = tokens_to_event_ids(target, config).tolist()
    found = repeat_state_before_every_note(ids, config)
    assert found == in_full(part, first, 100, Codec(config).first["tie"])
    assert remove_redundant_state_changes(found, config) == ids
