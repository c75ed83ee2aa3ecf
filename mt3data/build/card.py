"""Writes the dataset card of a build: README.md, with the YAML header for Hugging Face."""

from __future__ import annotations

from typing import Any

HEADER = """---
pretty_name: {title} for MT3
license: {licence_id}

tags:
- music-transcription
- mt3
- webdataset
configs:
- config_name: default
  data_files:
{files}
dataset_info:
  features:
{features}
---
"""

# `datasets` would guess these from the first five records, wrongly where they hold no notes.
FEATURES = """\
  - name: json
    struct:
    - name: dataset
      dtype: string
    - name: frames
      dtype: int64
    - name: variant
      dtype: int64
    - name: programs
      list: int64
    - name: schema
      dtype: int64
    - name: split
      dtype: string
    - name: start_frame
      dtype: int64
    - name: track
      dtype: string
    - name: track_frames
      dtype: int64
{arrays}
  - name: __key__
    dtype: string
  - name: __url__
    dtype: string"""

BODY = """
# {title}, as shards for MT3

Windows of {what} with notes and tokens, made by mt3kit {version}, with schema {schema} and fingerprint
`{short}`. {window} frames of {hop} samples at {rate} Hz per record, right context "{right_context}".

| split | tracks | hours | records | notes |
|---|---|---|---|---|
{rows}

Licence of the source: {licence}. Redistribution: {redistribution}
Please cite: {citation}

## Reading it

Each record of a tar has {count} members:

{members}
- `KEY.json`: dataset, track, split, variant, first frame, frames, programs

With bare `webdataset`:

    import io, json, numpy as np, webdataset as wds

    npy = lambda data: np.load(io.BytesIO(data), allow_pickle=False)
    shards = wds.WebDataset("{example}", shardshuffle=False)
    for record in shards:
        {sound}, tokens = npy(record["{sound}.npy"]), npy(record["tokens.npy"])
        facts = json.loads(record["json"])

With Hugging Face's `datasets`, in this folder: `datasets.load_dataset(".", split="{split}")`.
"""

SOUNDS = {"mel": "log-mel", "audio": "audio"}
MEMBERS = {
    "audio": "int16 {shape}, 16 kHz, full scale 32767",
    "mel": "float16 {shape}, natural logarithm",
    "notes": "float64 [n, 7]: onset s, offset s, pitch, velocity, program, is_drum, instrument",
    "tokens": "int16 [n], EOS last",
}


def _features(features: dict[str, Any]) -> str:
    """Returns the fields of a record for Hugging Face's YAML header."""
    lines = []
    for name, stored in sorted(features.items()):
        lines.append(f"  - name: {name}.npy")
        if len(stored["shape"]) == 1:
            lines.append(f"    list: {stored['dtype']}")
        else:
            lines += ["    list:", f"      list: {stored['dtype']}"]
    return FEATURES.format(arrays="\n".join(lines))


def dataset_card(manifest: dict[str, Any]) -> str:
    """Returns the README.md of a build from its build manifest."""
    splits = manifest["splits"]
    files = "\n".join(f"  - split: {name}\n    path: {name}-*.tar" for name in splits)
    rows = "\n".join(
        f"| {name} | {s['tracks']} | {s['hours']:.2f} | {s['records']} | {s['notes']} |"
        for name, s in splits.items()
    )
    spectrogram, shards = manifest["spectrogram"], manifest["shards"]
    sounds = [name for name in SOUNDS if name in manifest["features"]]
    text = HEADER.format(
        title=manifest["title"], licence_id=manifest["licence"].lower(), files=files,
        features=_features(manifest["features"]),
    ) + BODY.format(
        title=manifest["title"], version=manifest["version"], schema=manifest["schema"],
        short=manifest["fingerprint"][:12], window=manifest["window"], hop=spectrogram["hop"],
        rate=spectrogram["sample_rate"], right_context=manifest["right_context"], rows=rows,
        licence=manifest["licence"] + (f" ({url})" if (url := manifest["licence_url"]) else ""),
        redistribution=manifest["redistribution"], citation=manifest["citation"],
        example=shards[0]["name"] if shards else "", split=next(iter(splits), ""),
        count=len(manifest["features"]) + 1, sound=sounds[0],
        what=" and ".join(SOUNDS[name] for name in sounds),
        members="\n".join(
            f"- `KEY.{name}.npy`: {MEMBERS[name].format(shape=stored['shape'])}"
            for name, stored in sorted(manifest["features"].items())
        ),
    )  # fmt: skip
    return text
