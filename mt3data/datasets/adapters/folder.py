"""Reads your own recordings: audio and MIDI files of the same name, anywhere below a folder.

`song.wav` and `song.mid` are one track. Files of one name in several places are paired within their
folders; what stays without a partner, or has several, is a track that fails, with its reason.

Splits come from `splits.csv` (columns stem,split) in the folder if there is one, else from folders
named train, validation or test on the way to the audio, else every twentieth track, at least one of
two or more, is for validation; which ones depends on the names alone.

MT3 has no counterpart.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mt3data.audio.load import AUDIO_SUFFIXES, SNDFILE_SUFFIXES
from mt3data.datasets.adapters.csv_tracks import MidiLabels
from mt3data.datasets.documents import read_csv
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.files import same_name, walk
from mt3data.music.midi import MIDI_SUFFIXES
from mt3data.terminal import echo, kind_of

TABLE = "splits.csv"
SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.05
SEED = 0  # of the choice for validation
ID_BYTES = 40

Pair = tuple[Path | None, Path | None, str]  # audio, MIDI, why they cannot be used


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields every pair of audio and MIDI below root, and everything that has no partner.

    Args:
        root: any folder. Links to folders are followed; what is skipped is printed (see `files.walk`).
        manifest: of `folder`, perhaps under another name.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such folder, no such scheme, no audio or no MIDI in it, or
            splits.csv is wrong.
    """
    manifest.scheme(split_scheme)
    root = Path(root)
    pairs = _pairs(root)
    paths = [audio or midi for audio, midi, _ in pairs]
    relative = [path.relative_to(root) for path in paths if path]
    ids = _ids(relative)
    splits = _splits(root, relative, ids, [not why for _, _, why in pairs])
    return (
        _track(pair, root, manifest, path, track_id, split)
        for pair, path, track_id, split in zip(pairs, relative, ids, splits, strict=True)
    )


def _track(
    pair: Pair, root: Path, manifest: DatasetManifest, path: Path, track_id: str, split: str
) -> Track:
    audio, midi, failure = pair
    if not split:
        forgot = f"it is in none of the folders {', '.join(SPLITS)}"
        if (root / TABLE).is_file():
            forgot = f"{TABLE} does not name it"
        failure = failure or f"in no split: {forgot}"
    return Track(
        id=track_id, name=path.as_posix(), dataset=manifest.name, split=split,
        audio=audio or root / path, failure=failure, labels=MidiLabels(midi or root / path),
    )  # fmt: skip


def _pairs(root: Path) -> list[Pair]:
    """Returns every audio and MIDI file below root exactly once, in the order of names."""
    if not root.is_dir():
        raise UserError(f"{root}: {kind_of(root)}; expected a folder with audio and MIDI files")
    found: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    below = walk(root, AUDIO_SUFFIXES.union(MIDI_SUFFIXES))
    if below.skipped:
        echo(below.message, err=True)
    for path in below.files:
        found[same_name(path.stem)][path.suffix.lower() in MIDI_SUFFIXES].append(path)
    for audio, _ in found.values():  # an .m4a beside the .wav that was made from it
        plain = [path for path in audio if path.suffix.lower() in SNDFILE_SUFFIXES]
        folders = {path.parent for path in plain}
        audio[:] = plain + [p for p in audio if p not in plain and p.parent not in folders]
    n_audio, n_midi = (sum(len(files[i]) for files in found.values()) for i in (0, 1))
    if not n_audio or not n_midi:
        raise UserError(
            f"{root} holds {n_audio} audio files and {n_midi} MIDI files; expected pairs such as "
            "song.wav and song.mid, in any folders below it"
        )
    pairs: list[Pair] = []
    for stem in sorted(found):
        audio, midi = found[stem]
        if len(audio) == len(midi) == 1:
            pairs.append((audio[0], midi[0], ""))
            continue
        for folder in sorted({path.parent for path in audio + midi}):
            here = [[p for p in files if p.parent == folder] for files in (audio, midi)]
            if len(here[0]) == len(here[1]) == 1:
                pairs.append((here[0][0], here[1][0], ""))
                continue
            why = _unpaired(stem, len(audio), len(midi))
            pairs += [(path, None, why) for path in here[0]] + [
                (None, path, why) for path in here[1]
            ]
    return pairs


def _unpaired(stem: str, n_audio: int, n_midi: int) -> str:
    if not n_midi:
        return f"no MIDI file is named {stem}.mid or {stem}.midi"
    if not n_audio:
        return f"no audio file is named {stem}"
    return (
        f"{n_audio} audio and {n_midi} MIDI files are named {stem}, and not one of each in this "
        "folder; rename them or put each pair into a folder of its own"
    )


def _ids(relative: list[Path]) -> list[str]:
    """Makes ids from names: at most 40 bytes of [A-Za-z0-9_-], with a hash of the path if needed."""
    plain = []
    for path in relative:
        ascii_name = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
        plain.append(re.sub(r"[^A-Za-z0-9_-]+", "-", ascii_name).strip("-"))
    times = Counter(name.lower() for name in plain)
    ids = []
    for path, name in zip(relative, plain, strict=True):
        if not name or times[name.lower()] > 1 or len(name) > ID_BYTES:
            mark = hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]
            name = f"{name[: ID_BYTES - 9] or 'track'}-{mark}"
        ids.append(name)
    return ids


def _splits(root: Path, relative: list[Path], ids: list[str], usable: list[bool]) -> list[str]:
    """Returns the split of each track; "" if the user divides the tracks and left this one out."""
    table = root / TABLE
    if table.is_file():
        listed = _read_splits(table)
        stems = {same_name(path.stem) for path in relative}
        if unknown := [stem for stem in listed if stem not in stems]:
            more = f", nor {len(unknown) - 1} others of it" if len(unknown) > 1 else ""
            raise UserError(f"{table}: no file below {root} is named {unknown[0]!r}{more}")
        return [listed.get(same_name(path.stem), "") for path in relative]
    by_folder = [next((p for p in path.parts[:-1] if p in SPLITS), "") for path in relative]
    if any(by_folder):
        return by_folder

    def rank(track_id: str) -> bytes:
        return hashlib.sha256(f"{SEED}|{track_id}".encode()).digest()

    good = sorted((i for i, fine in zip(ids, usable, strict=True) if fine), key=rank)
    wanted = max(round(VALIDATION_SHARE * len(good)), 1 if len(good) > 1 else 0)
    chosen = set(good[:wanted])
    return ["validation" if track_id in chosen else "train" for track_id in ids]


def _read_splits(table: Path) -> dict[str, str]:
    """Reads the split of each stem. A stem may be given with its suffix."""
    splits: dict[str, str] = {}
    for number, entry in read_csv(table, ("stem", "split")):
        stem, split = same_name(entry["stem"]).strip(), entry["split"].strip()
        if Path(stem).suffix.lower() in AUDIO_SUFFIXES.union(MIDI_SUFFIXES):
            stem = Path(stem).stem
        if not stem or split not in SPLITS or splits.setdefault(stem, split) != split:
            raise UserError(
                f"{table}: row {number} has stem {stem!r}, split {split!r}; expected each stem in "
                f"one of {', '.join(SPLITS)}"
            )
    return splits
