"""The dataset card of a build: its README.md, with the YAML header that Hugging Face reads."""

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
---
"""

BODY = """
# {title}, as shards for MT3

Log-mel windows with notes and tokens, made by mt3kit {version}; schema {schema}, fingerprint
`{short}`. {window} frames of {hop} samples at {rate} Hz per record, edge "{edge}".

| split | tracks | hours | records | notes |
|---|---|---|---|---|
{rows}

Licence of the source: {licence} ({licence_url}). Redistribution: {redistribution}
Please cite: {citation}

## Reading it

Each record of a tar has four members: `KEY.mel.npy` float16 [frames, n_mels], `KEY.tokens.npy` int16
with EOS last, `KEY.notes.npy` float64 [n, 7] (onset s, offset s, pitch, velocity, program, is_drum,
instrument) and `KEY.json`. With bare `webdataset`:

    import io, json, numpy as np, webdataset as wds

    npy = lambda data: np.load(io.BytesIO(data), allow_pickle=False)
    shards = wds.WebDataset("{example}", shardshuffle=False)
    for record in shards:
        mel, tokens = npy(record["mel.npy"]), npy(record["tokens.npy"])
        facts = json.loads(record["json"])
"""


def dataset_card(manifest: dict[str, Any]) -> str:
    """The README.md of a build, from its manifest."""
    splits = manifest["splits"]
    files = "\n".join(f"  - split: {name}\n    path: {name}-*.tar" for name in splits)
    rows = "\n".join(
        f"| {name} | {s['tracks']} | {s['hours']:.2f} | {s['records']} | {s['notes']} |"
        for name, s in splits.items()
    )
    spectrogram, shards = manifest["spectrogram"], manifest["shards"]
    text = HEADER.format(
        title=manifest["title"], licence_id=manifest["licence"].lower(), files=files
    ) + BODY.format(
        title=manifest["title"], version=manifest["version"], schema=manifest["schema"],
        short=manifest["fingerprint"][:12], window=manifest["window"], hop=spectrogram["hop"],
        rate=spectrogram["sample_rate"], edge=manifest["edge"], rows=rows,
        licence=manifest["licence"], licence_url=manifest["licence_url"],
        redistribution=manifest["redistribution"], citation=manifest["citation"],
        example=shards[0]["name"] if shards else "",
    )  # fmt: skip
    return text
