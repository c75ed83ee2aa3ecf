"""Compares every record of a build with its index, and its tokens with its notes."""

import json
import tarfile
import zlib
from pathlib import Path

import numpy as np

from mt3data.music.fast_tokenizer import EventTable, encode
from mt3data.music.notes import Notes, validate
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.format import read_build_manifest, read_npy, tar_members
from mt3data.shards.index import ShardSet, references, track_rows

OF_JSON = ("variant", "start_frame", "frames", "track_frames", "programs")


def record_faults(folder: Path) -> list[str]:
    """Returns the records that disagree with the index, with themselves or with tracks.parquet."""
    manifest, faults, n_records = read_build_manifest(folder), [], dict[str, int]()
    vocabulary = VocabularyConfig(**manifest["vocabulary"])
    for split in manifest["splits"]:
        source = ShardSet(folder, split)
        names = []
        for shard in (s["name"] for s in manifest["shards"] if s["split"] == split):
            with tarfile.open(folder / shard) as tar:
                names += [(shard, each.name, each.offset_data, each.size) for each in tar]
        index = source.index
        shards, stated = index.dictionary_codes("shard"), []
        for row, key in enumerate(index["key"]):
            for member in tar_members(manifest["features"]):
                name = member.removesuffix(".npy")
                place = int(index[f"{name}_offset"][row]), int(index[f"{name}_size"][row])
                stated.append((shards[1][shards[0][row]], f"{key}.{member}", *place))
            track = index["track"][row]
            n_records[track] = n_records.get(track, 0) + 1
            if fault := _fault(source, row, vocabulary):
                faults.append(f"{key}: {fault}")
        if names != stated:
            faults.append(f"{split}: the members of the tars are not those of the index")
        for notes in references(folder, split).values():
            validate(notes)
    built = {row["track"]: row["records"] for row in track_rows(folder) if row["status"] == "ok"}
    return (
        faults if built == n_records else [*faults, f"tracks.parquet has {built}, not {n_records}"]
    )


def _fault(source: ShardSet, row: int, vocabulary: VocabularyConfig) -> str:
    index, features = source.index, source.manifest["features"]
    facts = json.loads(source.member(row, "json"))
    if differ := [name for name in OF_JSON if facts[name] != index[name][row]]:
        return f"its json and the index differ in {differ}"
    arrays = {name: read_npy(source.member(row, name)) for name in features}
    for name, array in arrays.items():
        shape = [
            a if b is not None else None
            for a, b in zip(array.shape, features[name]["shape"], strict=True)
        ]
        if (array.dtype, shape) != (features[name]["dtype"], features[name]["shape"]):
            return f"{name} is {array.dtype} {array.shape}"
        if name in ("mel", "audio") and zlib.crc32(array.tobytes()) != index[f"{name}_crc32"][row]:
            return f"{name} has another checksum"
        if name == "mel" and not np.isfinite(array).all():
            return "mel is not finite"
    notes = Notes.from_array(arrays["notes"])
    validate(notes)
    start, track_frames = int(index["start_frame"][row]), int(index["track_frames"][row])
    n_frames = min(int(index["frames"][row]), track_frames - start)
    tokens = encode(EventTable.from_notes(notes, vocabulary), start, n_frames, track_frames)
    counts = int(index["n_notes"][row]), int(index["n_tokens"][row])
    if arrays["tokens"].tolist() != tokens.tolist() or counts != (len(notes), len(tokens)):
        return "its tokens are not those of its notes"
    return ""
