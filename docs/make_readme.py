"""The picture of README.md, and the parts of it that are made of other files.

    python docs/make_readme.py

writes the text between `<!-- made: NAME -->` and `<!-- end -->` anew: the table of datasets, from
the manifests, and the scores of the demo weights, from their model card. `--picture` draws the picture,
too, which wants the extra `synth`. tests/repository/test_readme.py holds the texts.
"""

from __future__ import annotations

import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from mt3data.datasets.listing import download_size, summary
from mt3data.datasets.manifest import load, names
from mt3train.weights.pretrained import CARD, FOLDER

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "readme.png"
MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SEED, START, SECONDS = 1, 4.0, 8.0  # of a composed piece
COLOURS = 128  # of the picture's file


def parts() -> dict[str, str]:
    """The parts of README.md that are made, by name."""
    card = (FOLDER / CARD).read_text(encoding="utf-8")
    weights = card.partition("\n## Scores\n\n")[2].partition("\n### ")[0]
    return {
        "datasets": datasets_table(),
        "weights": weights,
    }


def datasets_table() -> str:
    """Returns the datasets as a table in Markdown, with links to their licences."""
    lines = [
        "| `mt3data build` | dataset | licence | tracks | hours | download | passing shards on |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for manifest in map(load, names()):
        row = summary(manifest)
        name = f"[{manifest.title}]({manifest.homepage})" if manifest.homepage else manifest.title
        url = manifest.licence_url
        cells = (
            f"`{manifest.name}`", name, f"[{manifest.licence}]({url})" if url else manifest.licence,
            f"{row['tracks']:,}" if row["tracks"] else "-",
            f"{row['hours']:.1f}" if row["hours"] else "-", download_size(row), manifest.redistribution,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """The page with its made parts replaced; raises KeyError for a part that is not made."""
    made = parts()
    return MADE.sub(lambda match: f"{match[1]}{made[match[2]]}{match[3]}", page)


def draw(out: Path) -> None:
    """Draws what the model hears of a composed piece, and the notes that it is to write."""
    import matplotlib.pyplot as plt
    from PIL import Image

    from mt3data.audio.load import read_audio
    from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
    from mt3data.datasets.adapters.slakh import tracks
    from mt3data.synth.demo_dataset import synth

    with tempfile.TemporaryDirectory() as folder:
        synth(Path(folder), tracks=1, seed=SEED, seconds=2 * SECONDS)
        (track,) = tracks(Path(folder), load("demo"))
        mel, notes = log_mel(read_audio(track.audio), SpectrogramConfig()), track.load_notes()
    figure, (heard, written) = plt.subplots(
        2, 1, figsize=(9, 4.2), height_ratios=[1, 1], sharex=True, layout="constrained"
    )
    extent = (0, len(mel) * 0.008, 0, mel.shape[1])
    heard.imshow(
        mel.T[:384], origin="lower", aspect="auto", cmap="magma", vmin=-8, vmax=6, extent=extent
    )
    heard.set(title="what the model hears: log-mel frames of 8 ms", yticks=[])
    _draw_roll(written, notes)
    written.set(title="what it is to write: the notes of every instrument", ylabel="pitch", xlabel="s",
                xlim=(START, START + SECONDS))  # fmt: skip
    file = BytesIO()
    figure.savefig(file, dpi=100)
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def _draw_roll(axes: Any, notes: Any) -> None:
    import matplotlib.pyplot as plt
    from pretty_midi import program_to_instrument_name

    colours = plt.get_cmap("tab10")
    for number, program in enumerate(sorted(set(notes.program[~notes.is_drum].tolist()))):
        mine = notes[~notes.is_drum & (notes.program == program)]
        axes.hlines(mine.pitch, mine.onset, mine.offset, color=colours(number), lw=3,
                    label=program_to_instrument_name(program))  # fmt: skip
    drums = notes[notes.is_drum]
    axes.plot(drums.onset, drums.pitch, "|", color="black", ms=6, label="Drums")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    if "--picture" in sys.argv[1:]:
        draw(PICTURE)
