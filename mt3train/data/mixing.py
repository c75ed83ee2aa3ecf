"""Mixes the audio of several random examples into one, for the pre-training recipe of MT3's authors.

Each segment is the sum of 1 to `examples` crops, divided by its peak, and its target is their merged
targets. Every number of crops comes equally often. The mixes contain more instruments than any dataset.

The mixes follow from (seed, step). IndexedShards plans the crops of a step. They are grouped in this
order, and the sizes of the groups are a seeded permutation of 1, 2, ... `examples`, 1, 2, ... So every
record comes once per epoch, and the mixes do not depend on the number of processes.

Difference from the original: it draws at random from one stream of mixes for each size. Here the sizes
are balanced exactly within a batch.

Source: mt3/mixing.py mix_transcription_examples, as mt3/gin/ismir2022/pretrain.gin sets it (Simon et
al. 2022, Scaling Polyphonic Transcription with Mixtures of Monophonic Transcriptions).
"""

from collections.abc import Sequence

import numpy as np

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.reader import Batch, IndexedShards, pad_tokens
from mt3train.data.merge_targets import merge_targets


class MixedShards:
    """Returns batches of mixes, with the interface of `IndexedShards`.

    Args:
        shards: source of the audio.
        examples: largest number of crops in a mix.
    """

    def __init__(self, shards: IndexedShards, examples: int) -> None:
        self.shards, self.examples = shards, examples
        self.spectrogram, self.vocabulary = shards.spectrogram, shards.vocabulary
        self.right_context, self.feature = shards.right_context, shards.feature
        self.builds, self.n_records = shards.builds, shards.n_records

    def groups(self, step: int, global_batch: int) -> list[np.ndarray]:
        """Returns the indices of the crops of each mix, a pure function of (seed, step).

        Raises:
            UserError: global_batch is not a multiple of `examples`.
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
        self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, frames: int = 256
    ) -> Batch:
        """Returns this rank's mixes. The mixes of a step, longest first, go to the ranks in turn.

        Returns:
            A batch whose audio is float32 with a peak of 1. A key names all records of a mix, and
            start_frames is that of its first crop.
        """
        groups = self.groups(step, global_batch)
        n_crops = sum(map(len, groups))
        n_tokens = self.shards.n_tokens(step, n_crops)
        order = np.argsort([-n_tokens[group].sum() for group in groups], kind="stable")
        mine = [groups[i] for i in order[rank::world_size]]
        crops = self.shards.read(step, n_crops, np.concatenate(mine).tolist(), frames)
        ends = np.cumsum([len(group) for group in mine])
        return mix(crops, np.split(np.arange(ends[-1]), ends[:-1]), self.vocabulary)


def mix(crops: Batch, groups: Sequence[np.ndarray], config: VocabularyConfig) -> Batch:
    """Sums each group of crops into one.

    Args:
        crops: with audio.
        groups: rows of the crops of each mix; together they are all rows, in order.
        config: the vocabulary of their tokens.
    """
    assert crops.audio is not None
    audio = np.empty((len(groups), crops.audio.shape[1]), np.float32)
    for mixed, rows in zip(audio, groups, strict=True):
        crops.audio[rows].sum(axis=0, dtype=np.float32, out=mixed)
        if peak := np.abs(mixed).max(initial=0.0):
            mixed /= peak
    targets = [ids[:n] for ids, n in zip(crops.tokens, crops.lengths, strict=True)]
    merged = [merge_targets([targets[row] for row in rows], config) for rows in groups]
    tokens, lengths = pad_tokens(merged)
    first = [group[0] for group in groups]
    n_frames = np.array([crops.n_frames[rows].max() for rows in groups], np.int32)
    keys = ["+".join(crops.keys[row] for row in rows) for rows in groups]
    return Batch(None, audio, tokens, lengths, keys, crops.start_frames[first], n_frames)
