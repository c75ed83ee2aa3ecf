"""Writes the model card of the demo weights, README.md, from the scores.json beside it.

    python benchmarks/weights_card.py [FOLDER]        # default: mt3train/weights

benchmarks/weights.py runs this at its end. What no measurement tells, such as what was tried in vain,
stands in benchmarks/weights_notes.md and is put at the card's end as it is.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.files import write_atomically
from mt3data.shards.windows import WindowConfig
from mt3train.evaluation.evaluate import nan_mean
from mt3train.weights.pretrained import CARD, FOLDER, SCORES, WEIGHTS

NOTES = Path(__file__).with_name("weights_notes.md")
ROWS = {  # what a line of the table is called, and its score
    "onset": "onset_f1", "onset and offset": "onset_offset_f1",
    "onset, offset and instrument class; drums by onset": "program_f1", "frames": "frame_f1",
    "drums, by onset": "drum_f1", "leakage (less is better)": "leakage",
}  # fmt: skip

HEAD = """\
# The demo weights

Written by `benchmarks/weights.py` from `scores.json`; edit `benchmarks/weights_notes.md` or the script.

`mt3train transcribe song.wav -o song.mid` takes these weights where no `--checkpoint` is given, so that it
works as soon as the package is installed. They are a small model, trained on {hours:.1f} hours of pieces that
this project composed and rendered. **No real recording was heard in training, and none was measured**:
expect less than the scores below from one.

| | |
|---|---|
| file | `{file}`, {bytes:,} bytes, float16, step {step:,} |
| sha256 of the arrays, as `mt3train convert` prints it | `{sha256}` |
| architecture | MT3's: {n_parameters:,} parameters, {num_encoder_layers} + {num_decoder_layers} layers of width {emb_dim}, {num_heads} heads of {head_dim}, MLP {mlp_dim} |
| hears | {frames} frames of {n_mels} log-mel bins, {segment:.3f} s at 16 kHz; right_context "{right_context}" |
| says | notes of {classes}, and drums; {velocities} |
"""

SCORES_TEXT = """
## Scores

Means over the {n} test pieces ({minutes:.0f} minutes) of F1 as `mt3train evaluate` has it, scoring `corrected`, with
95 % intervals from bootstraps over pieces. Beside them two controls, which a model that hears must fail: the
notes it found against those of another piece, and the same audio played backwards against the same notes
(the first {n_backwards} pieces).

"""

LICENCE = """
## Licence

The code that made them is Apache-2.0, and as far as we hold rights in the weights, so are they. The pieces are
composed by `mt3data.synth.compose` and CC0. Their sound is that of `TimGM6mb.sf2`, which pretty_midi ships (the copy used
has sha256 `{soundfont}`). Debian packages TimGM6mb under GPL-2 (Tim
Brechbill 2004, David Bolton 2010); pretty_midi states no licence for its copy, its own being MIT, and we did not
compare the two. The weights hold none of its samples. Whether weights that were fitted to a sound owe anything to the
sound's licence is not settled anywhere that we know of. If you must be sure, render with another SoundFont
(`mt3data synth --soundfont FILE`) and train again with the commands above.
"""

LIMITS = """
## What it cannot do

- Real recordings: rooms, singing, effects, mastering and playing styles beyond one synthesizer's are new to it.
- Tell instruments of one class apart: it says "Guitar" for all eight of General MIDI, as the first of them.
- Loudness: all notes get one velocity.
- Bends, slides, vibrato, noises, sung words; drums are General MIDI's keys, struck, without a length.
- Notes closer than 10 ms, the step of its clock.
- Stand beside published numbers: its test pieces come from the composer and the SoundFont it was trained on.
"""


def write_card(folder: Path) -> Path:
    """Write README.md from scores.json; returns its path."""
    measured = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    notes = NOTES.read_text(encoding="utf-8") if NOTES.is_file() else ""
    write_atomically(folder / CARD, card(measured, notes).encode())
    return folder / CARD


def card(measured: Mapping[str, Any], notes: str) -> str:
    """The model card; parts that were not measured are left out."""
    parts = [head(measured), scores(measured), instruments(measured["test"])]
    parts += [part(measured) for part in (by_parts, soloists, decoding, speed, data, training)]
    parts += [LICENCE.format(**measured["data"]["synth"]), LIMITS]
    return "".join(parts) + (f"\n{notes.strip()}\n" if notes.strip() else "")


def head(measured: Mapping[str, Any]) -> str:
    """What the weights are."""
    told = measured["weights"]
    info = told["info"]
    vocabulary = info["vocabulary"]
    classes = {"midi_class": "the 16 classes of General MIDI", "full": "128 programs",
               "flat": "one instrument"}[vocabulary["granularity"]]  # fmt: skip
    return HEAD.format(
        **{**told, **info["model"]}, file=WEIGHTS, frames=info["frames"], right_context=info["right_context"],
        segment=info["frames"] * info["spectrogram"]["hop"] / info["spectrogram"]["sample_rate"],
        hours=measured["data"]["splits"]["train"]["hours"], classes=classes,
        velocities="one velocity" if vocabulary["num_velocity_bins"] == 1 else "velocities",
    )  # fmt: skip


def scores(measured: Mapping[str, Any]) -> str:
    """The main table, with its controls."""
    test, reverse = measured["test"], measured.get("backwards")
    columns = [("", test["scores"]), ("another piece's notes", test["of_the_next_piece"])]
    if reverse:
        columns.append(("audio backwards", reverse["scores"]))
    rows = [
        [what, *(mean_and_interval(column[name]) for _, column in columns)]
        for what, name in ROWS.items()
    ]
    lead = SCORES_TEXT.format(
        n=test["n_tracks"], minutes=test["seconds"] / 60,
        n_backwards=reverse["n_tracks"] if reverse else 0,
    )  # fmt: skip
    counts = [sum(track[name] for track in test["tracks"])
              for name in ("n_reference", "n_estimate", "invalid", "n_segments")]  # fmt: skip
    return (
        lead
        + table(["F1", "test pieces", *(name for name, _ in columns[1:])], rows)
        + "\n{:,} notes are there, {:,} were found; {:,} events in {:,} segments made no sense and were "
        "skipped.\nLeakage is the share of the notes right in pitch and onset that stand under a wrong "
        "class.\n".format(*counts)
    )


def instruments(test: Mapping[str, Any]) -> str:
    """A line for each class of instruments."""
    rows = [
        [one["name"], one["n_tracks"], one["n_reference"], number(one["onset_precision"]),
         number(one["onset_recall"]), number(one["onset_f1"]), number(one["onset_offset_f1"]),
         mistaken(one)]
        for one in test["instruments"]
    ]  # fmt: skip
    names = [
        "",
        "pieces",
        "notes",
        "precision",
        "recall",
        "onset F1",
        "with offset",
        "mistaken for",
    ]
    return "\n### By instrument\n\nAll notes of a class taken together.\n\n" + table(names, rows)


def by_parts(measured: Mapping[str, Any]) -> str:
    """A line for each number of parts that play together."""
    tracks = measured["test"]["tracks"]
    rows = []
    for parts in sorted({track["parts"] for track in tracks}):
        some = [track for track in tracks if track["parts"] == parts]
        rows.append([parts, len(some), *(number(mean(some, name)) for name in ROWS.values())])
    return "\n### By the number of parts, drums included\n\n" + table(
        ["parts", "pieces", *ROWS], rows
    )


def soloists(measured: Mapping[str, Any]) -> str:
    """Parts alone beside the same parts in the mix."""
    solo = measured.get("soloists")
    if not solo:
        return ""
    mixed = {one["name"]: one for one in solo["mixed"]}
    rows = [
        [one["name"], one["n_reference"], number(mixed[one["name"]]["onset_f1"]),
         number(one["onset_f1"]), number(one["onset_recall"]), mistaken(one)]
        for one in solo["alone"] if one["name"] in mixed
    ]  # fmt: skip
    return (
        f"\n### Soloists\n\nThe {solo['n_parts']} parts of the first {solo['n_tracks']} test pieces, each "
        "heard alone, beside the same parts in their mixes.\n\n"
        + table(["", "notes", "onset F1 in the mix", "alone", "recall alone", "mistaken for, alone"], rows)
    )  # fmt: skip


def decoding(measured: Mapping[str, Any]) -> str:
    """What half precision changes."""
    ways = {"greedy, the default": "test",
            "greedy, weights in full precision": "full_precision"}  # fmt: skip
    counts = [measured[name]["n_tracks"] for name in ways.values() if name in measured]
    n, rows = min(counts), []
    for what, name in ways.items():
        if name in measured:
            tracks = measured[name]["tracks"][:n]
            means = (mean(tracks, s) for s in ("onset_f1", "onset_offset_f1", "program_f1"))
            sums = (sum(t[s] for t in tracks) for s in ("invalid", "dropped"))
            used = sum(t["cpu_seconds"] for t in tracks)
            rows.append([what, *(f"{value:.4f}" for value in means), *sums, f"{used:.0f}"])
    names = ["", "onset", "with offset", "with class", "events without sense", "tokens behind the segment",
             "CPU-seconds"]  # fmt: skip
    return f"\n### Ways of decoding\n\nMeans over the first {n} test pieces.\n\n" + table(
        names, rows
    )


def speed(measured: Mapping[str, Any]) -> str:
    """Speed and memory of the long recording."""
    long = measured.get("long")
    if not long:
        return ""
    machine = measured["machine"]
    return (
        f"\n## Speed and memory\n\n`mt3train transcribe` on test pieces one after the other, "
        f"{long['seconds'] / 3600:.2f} hours with {long['n_notes']:,} notes found, loading included: "
        f"{long['wall_seconds']:.0f} s on {long['threads']} threads of {machine['cores']} cores "
        f"({machine['processor']}), **{long['seconds'] / long['wall_seconds']:.0f} x real time**, "
        f"{long['cpu_seconds']:.0f} CPU-seconds, at most **{long['max_rss_mb']:,} MB** in the process.\n"
    )


def data(measured: Mapping[str, Any]) -> str:
    """How to make the pieces and the shards."""
    facts = measured["data"]
    synth, splits = facts["synth"], facts["splits"]
    rows = [[name, s["tracks"], f"{s['hours']:.2f}", s["notes"]] for name, s in splits.items()]
    return (
        "\n## Data\n\n```bash\n"
        f"mt3data synth --out data/demo --tracks {synth['tracks']} --seconds {synth['seconds']:g} "
        f"--seed {synth['seed']}\n{build_command(facts['build'])}\n```\n\n"
        f"Rendered with {synth['renderer']}. {about_variants(facts['build'])}\n\n"
        + table(["split", "pieces", "hours", "notes in records"], rows)
    )


def build_command(build: Mapping[str, Any]) -> str:
    """The `mt3data build` that a manifest describes, defaults left out."""
    subsets = build["subsets"]
    features = tuple(build["features"].split(","))
    least = re.findall(r"uniform from (\d+)", subsets["law"]) if subsets else []
    options = {
        "window": (build["window"], 2048), "store": (build["features"], "mel"),
        "context": (build["right_context"], WindowConfig(build["window"], features=features).right_context),
        "granularity": (build["granularity"], "full"), "encoding": (build["encoding"], "ties"),
        "velocity-bins": (build["num_velocity_bins"], 1), "align": (build["align"], "measure"),
        "subsets": (subsets and subsets["variants"], None), "min-stems": ("".join(least), ""),
        "seed": (build["seed"], 0),
    }  # fmt: skip
    told = [f"--{name} {value}" for name, (value, usual) in options.items() if value != usual]
    return " ".join(["mt3data build demo --out shards/", *told])


def about_variants(build: Mapping[str, Any]) -> str:
    """What the model heard of a training piece."""
    if not build["subsets"]:
        return "Training heard the mixes."
    return (
        f"Training heard {build['subsets']['variants']} random subsets of the parts of each piece, "
        "validation and test the mixes."
    )


def training(measured: Mapping[str, Any]) -> str:
    """The configuration and what came of it, run after run."""
    text = "\n## Training\n"
    for run in measured["training"]:
        best = run["best_evaluation"]
        heard = (
            f"; evaluation loss {best['eval_loss']}, at best, at step {best['step']:,}"
            if best
            else ""
        )
        text += (
            f"\n{run['steps']:,} updates, {run['segments']:,} segments, {run['hours']:.1f} hours; loss "
            f"{run['loss']} at the end{heard}. "
            f"As a file `weights.toml`, for `mt3train train weights.toml`:\n\n```toml\n"
            f"{toml(run['settings'])}\n```\n"
        )
    return text


def toml(settings: Mapping[str, Any]) -> str:
    """Settings by dotted key as a configuration file."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if "." not in key]
    for section in dict.fromkeys(key.split(".")[0] for key in settings if "." in key):
        lines += ["", f"[{section}]"]
        lines += [f"{key.split('.', 1)[1]} = {json.dumps(value)}"
                  for key, value in settings.items() if key.startswith(f"{section}.")]  # fmt: skip
    return "\n".join(lines)


# --- cells ---------------------------------------------------------------------------------------


def table(names: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table of Markdown; whole numbers get thousands separators."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def mean(tracks: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of the tracks that have the score."""
    return nan_mean(np.array([track[name] for track in tracks], np.float64))


def mean_and_interval(score: Mapping[str, Any]) -> str:
    if score["mean"] is None:
        return "-"
    low, high = score["interval"]
    return f"{score['mean']:.3f} [{low:.3f}, {high:.3f}]"


def mistaken(one: Mapping[str, Any]) -> str:
    """What its notes were said to be, with the share of its notes."""
    share = 100 / max(1, one["n_reference"])
    return ", ".join(f"{name} {n * share:.0f} %" for name, n in one["heard_as"].items() if n * share >= 1)  # fmt: skip


if __name__ == "__main__":
    print(write_card(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
