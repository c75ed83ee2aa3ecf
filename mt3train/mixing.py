"""The pre-training recipe that mixes audio: sounds of several random examples at once.

Each segment is the sum of 1 to `examples` crops, every number equally often, divided by its peak; its
target is theirs, merged. So the network hears more instruments together than any dataset has.

Which crops those are follows from (seed, step): the crops that IndexedShards plans for a step are
grouped in their order, the sizes of the groups being a seeded permutation of 1, 2, ... `examples`, 1,
2, ... Every record still comes once per epoch, and all numbers of processes train on the same mixes.

Difference from the original: there one stream of mixes for each size is drawn from at random; here
sizes are exactly balanced within a batch.

Source: mt3/mixing.py mix_transcription_examples, as mt3/gin/ismir2022/pretrain.gin sets it (Simon et
al. 2022, Scaling Polyphonic Transcription with Mixtures of Monophonic Transcriptions).
"""

from collections.abc import Sequence

import numpy as np

from mt3data.errors import UserError
from mt3data.reader import Batch, IndexedShards, pad_tokens
from mt3data.tokens import merge_streams
from mt3data.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    VocabularyConfig,
    codec_of,
    tokens_to_event_ids,
)


class MixedShards:
    """Batches of mixes, in the place of batches of crops; see `IndexedShards`.

    Args:
        shards: that read audio.
        examples: the most crops that a mix has.
    """

    def __init__(self, shards: IndexedShards, examples: int) -> None:
        self.shards, self.examples = shards, examples
        self.spectrogram, self.vocabulary = shards.spectrogram, shards.vocabulary
        self.edge, self.member, self.builds = shards.edge, shards.member, shards.builds
        self.n_records = shards.n_records

    def groups(self, step: int, global_batch: int) -> list[np.ndarray]:
        """Numbers of the crops of each mix; a pure function of (seed, step).

        Raises:
            UserError: global_batch is no multiple of `examples`.
        """
        if global_batch % self.examples:
            raise UserError(
                f"batch={global_batch} is not a multiple of data.mix_examples={self.examples}; mixes "
                f"of 1 to {self.examples} crops come equally often in each batch"
            )
        generator = np.random.default_rng([self.shards.seed, 3, step])
        sizes = generator.permutation(np.arange(global_batch) % self.examples + 1)
        return np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world: int = 1, frames: int = 256
    ) -> Batch:
        """This rank's mixes: those of a step, longest targets first, are dealt out like cards.

        Returns:
            A batch whose audio is float32 with a peak of 1; a key names all records of a mix, and
            start_frames is that of its first crop.
        """
        groups = self.groups(step, global_batch)
        n_crops = sum(map(len, groups))
        n_tokens = self.shards.n_tokens(step, n_crops)
        order = np.argsort([-n_tokens[group].sum() for group in groups], kind="stable")
        mine = [groups[i] for i in order[rank::world]]
        crops = self.shards.read(step, n_crops, np.concatenate(mine).tolist(), frames)
        ends = np.cumsum([len(group) for group in mine])
        return mix(crops, np.split(np.arange(ends[-1]), ends[:-1]), self.vocabulary)


def mix(crops: Batch, groups: Sequence[np.ndarray], config: VocabularyConfig) -> Batch:
    """Each group of crops as one.

    Args:
        crops: with audio.
        groups: rows of crops that belong together, in their order.
        config: the vocabulary of their tokens.
    """
    assert crops.audio is not None
    audio = np.empty((len(groups), crops.audio.shape[1]), np.float32)
    targets = []
    for mixed, rows in zip(audio, groups, strict=True):
        crops.audio[rows].sum(axis=0, dtype=np.float32, out=mixed)
        if peak := np.abs(mixed).max(initial=0.0):
            mixed /= peak
        rows_tokens = [crops.tokens[row, : crops.lengths[row]] for row in rows]
        targets.append(merge_targets(rows_tokens, config))
    tokens, lengths = pad_tokens(targets)
    first = [group[0] for group in groups]
    n_frames = np.array([crops.n_frames[rows].max() for rows in groups], np.int32)
    keys = ["+".join(crops.keys[row] for row in rows) for rows in groups]
    return Batch(None, audio, tokens, lengths, keys, crops.start_frames[first], n_frames)


def merge_targets(targets: Sequence[np.ndarray], config: VocabularyConfig) -> np.ndarray:
    """The target of a mix.

    Args:
        targets: token ids of its parts, each ending with EOS.
    Returns:
        Token ids ending with EOS, int16. A tie section for each part, as in the original.
    """
    streams = [say_all(tokens_to_event_ids(target, config).tolist(), config) for target in targets]
    merged = say_changes(merge_streams(streams, config), config)
    return np.append(np.array(merged, np.int16) + NUM_SPECIAL_IDS, EOS_ID).astype(np.int16)


def say_all(event_ids: Sequence[int], config: VocabularyConfig) -> list[int]:
    """Events with the program and velocity said before every note, as they are before merging.

    Without this a note behind one of another stream would take that one's program.

    Args:
        event_ids: codec ids of one target, with program and velocity said where they change.
    """
    ranges = {name: codec_of(config).type_range(name) for name in ("velocity", "program", "pitch")}
    (velocities, programs, pitches) = (range(a, b + 1) for a, b in ranges.values())
    tie, drums = codec_of(config).first["tie"], codec_of(config).first["drum"]
    in_ties = config.encoding == "ties"
    velocity: list[int] = []
    program: list[int] = []
    said: list[int] = []
    for event_id in event_ids:
        if event_id in velocities:
            velocity = [event_id]
        elif event_id in programs:
            program = [event_id]
        elif event_id in pitches:
            said += [*program, event_id] if in_ties else [*program, *velocity, event_id]
        elif event_id >= drums:
            said += [*velocity, event_id]
        else:
            in_ties = in_ties and event_id != tie
            said.append(event_id)
    return said


def say_changes(event_ids: Sequence[int], config: VocabularyConfig) -> list[int]:
    """Events without the programs and velocities that repeat the one said last.

    Source: mt3/run_length_encoding.py remove_redundant_state_changes_fn.
    """
    codec = codec_of(config)
    states = [range(a, b + 1) for a, b in map(codec.type_range, ("velocity", "program"))]
    last, said = [-1, -1], []
    for event_id in event_ids:
        kind = 0 if event_id in states[0] else 1 if event_id in states[1] else None
        if kind is None or last[kind] != event_id:
            said.append(event_id)
        if kind is not None:
            last[kind] = event_id
    return said
