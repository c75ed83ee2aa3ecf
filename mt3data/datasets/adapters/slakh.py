"""Reads Slakh2100 from its published folders, and the demo pieces, which have its layout.

Two layouts are read: `slakh2100_flac_redux/{train,validation,test,omitted}/TrackNNNNN` and
`babyslakh_16k/TrackNNNNN` (a folder without split folders). The label of a stem carries the program
of its Slakh class, found by `program_num`; stems without a class have no label. The files decide
what exists, not the flags in metadata.yaml, which are wrong in places (known_issues in the
manifest).

MT3 reads TFRecords with `inst_names` in place of the folders; the classes are the same
(mt3/preprocessors.py slakh_class_to_program_and_is_drum). Pitch bends are ignored and overlaps are
trimmed in training only, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt3data.datasets.documents import read_yaml
from mt3data.datasets.manifest import DatasetManifest, SplitScheme
from mt3data.datasets.track import Stem, Track
from mt3data.errors import UserError

TRACK_NAME = re.compile(r"Track\d{5}")


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields every track below root in the order of track numbers.

    Only folder names and metadata.yaml are read. A track that cannot be used (no mix, no readable
    metadata.yaml, no stem with both audio and MIDI, a number outside the splits) is yielded all the
    same, with its reason in `failure`.

    Args:
        root: the folder that holds the unpacked archive, the archive's own top folder, or a folder
            of tracks.
        manifest: of slakh, or of a dataset in its layout.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no track folder where one was looked for.
    """
    scheme = manifest.scheme(split_scheme)
    root = Path(root)
    return (_track(folder, manifest, scheme) for folder in _track_folders(root, manifest))


def _track_folders(root: Path, manifest: DatasetManifest) -> list[Path]:
    """Returns the track folders of the first base folder that has any, sorted by name."""
    top_folders = manifest.layout_names("folders")
    bases = [
        base / folder for base in (root, root / manifest.folder) for folder in ("", *top_folders)
    ]
    for base in bases:
        groups = [base, *(base / split for split in manifest.layout_names("split_folders"))]
        found = sorted(
            (path for group in groups for path in _tracks_in(group)), key=lambda p: p.name
        )
        for one, other in zip(found, found[1:], strict=False):
            if one.name == other.name:
                raise UserError(
                    f"{one.name} lies in {one.parent} and in {other.parent}; remove one"
                )
        if found:
            return found
    splits = ",".join(manifest.layout_names("split_folders"))
    looked_for = f"TrackNNNNN or {{{splits}}}/TrackNNNNN in {root}"
    if top_folders:
        looked_for += f" or in its folders {', '.join(top_folders)}"
    raise UserError(
        f"{root} holds no {manifest.title} tracks; looked for {looked_for}{_hint(root)}"
    )


def _tracks_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if TRACK_NAME.fullmatch(path.name) and path.is_dir()]


def _hint(root: Path) -> str:
    if not root.is_dir():
        return "; the folder does not exist"
    if TRACK_NAME.fullmatch(root.name) or (root / "metadata.yaml").exists():
        return f"; this is one track, point at the folder above: {root.parent}"
    for depth in ("*/Track?????", "*/*/Track?????", "*/*/*/Track?????"):
        for path in sorted(root.glob(depth)):
            return f"; there are tracks in {path.parent}: point there"
    return ""


def _track(folder: Path, manifest: DatasetManifest, scheme: SplitScheme) -> Track:
    name = folder.name
    stems: tuple[Stem, ...]
    problems: list[str] = []
    split, failure = _split(folder, manifest, scheme)
    mixes = [folder / mix for mix in manifest.layout_names("mix")]
    audio, stems = mixes[0] if mixes else folder, ()
    try:
        audio = next((path for path in mixes if path.is_file()), audio)
        if not audio.is_file():
            failure = failure or f"no mix, expected {' or '.join(manifest.layout_names('mix'))}"
        described = _read_metadata(folder / "metadata.yaml")
        stems, problems = _stems(folder, manifest, described)
        if not stems:
            failure = failure or f"no stem with a class, audio and MIDI ({'; '.join(problems)})"
    except UserError as error:
        failure = failure or str(error)
    except OSError as error:  # of a folder without permission, for example
        failure = failure or f"its folder cannot be read ({error.strerror})"
    for entry in manifest.rows.get(name, {}).get("problem_stems", "").split():
        stem_id, _, fault = entry.partition(":")
        problems.append(
            f"{stem_id}: listed as a problem stem ({fault}); kept where its files exist"
        )
    return Track(
        id=name, name=name, dataset=manifest.name, split=split, audio=audio, stems=stems,
        problems=tuple(problems), trim=split == "train", failure=failure,
    )  # fmt: skip


def _split(folder: Path, manifest: DatasetManifest, scheme: SplitScheme) -> tuple[str, str]:
    """Returns the split of a track and, if it has none, the reason."""
    if scheme.column:
        split = manifest.rows.get(folder.name, {}).get(scheme.column, "")
    elif scheme.ranges:
        number = int(folder.name.removeprefix("Track"))
        split = next((s for s, first, last in scheme.ranges if first <= number <= last), "")
    else:
        name = folder.parent.name
        split = name if name in manifest.layout_names("split_folders") else ""
    return split, "" if split else f"in no split of the scheme {scheme.name!r}"


def _read_metadata(path: Path) -> dict[str, Any]:
    """Reads the stems of a metadata.yaml by id; errors leave out the folder, see Track.failure."""
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
    stems = content.get("stems") if isinstance(content, dict) else None
    if not isinstance(stems, dict):
        raise UserError(f"{path.name} lists no stems; expected a mapping `stems:` of S00, S01, ...")
    return {str(stem_id): described for stem_id, described in stems.items()}


def _stems(
    folder: Path, manifest: DatasetManifest, described: dict[str, Any]
) -> tuple[tuple[Stem, ...], list[str]]:
    """Returns the stems that have a label, and the problems of the others."""
    suffixes = {Path(pattern).suffix for pattern in manifest.layout_names("stem_audio")}
    audio = {p.stem: p for p in sorted(folder.glob("stems/S*")) if p.suffix in suffixes}
    midi = {p.stem: p for p in sorted(folder.glob("MIDI/S*.mid"))}
    stems, problems = [], []
    for stem_id in sorted({*described, *audio, *midi}):
        if stem_id not in described:
            problems.append(f"{stem_id}: not in metadata.yaml, so its program is unknown; no label")
            continue
        label = _label(described[stem_id], manifest)
        if isinstance(label, str):
            problems.append(f"{stem_id}: {label}; no label")
        elif stem_id in audio and stem_id in midi:
            program, is_drum, name = label
            family = described[stem_id].get("inst_class")
            family = family if isinstance(family, str) else ""
            stems.append(
                Stem(stem_id, audio[stem_id], midi[stem_id], program, is_drum, name, family)
            )
        elif stem_id in midi:
            problems.append(f"{stem_id}: MIDI without audio; label dropped")
        elif stem_id in audio:
            problems.append(f"{stem_id}: audio without MIDI; it sounds in the mix and has no label")
        else:
            problems.append(f"{stem_id}: neither audio nor MIDI")
    return tuple(stems), problems


def _label(described: Any, manifest: DatasetManifest) -> tuple[int, bool, str] | str:
    """Returns (program, is_drum, class) of a stem, or why it has none."""
    if not isinstance(described, dict):
        return f"metadata.yaml has a {type(described).__name__} for it, expected a mapping"
    number = described.get("program_num")
    if described.get("is_drum") is True or number == 128:
        return 0, True, "Drums"
    if type(number) is not int or not 0 <= number <= 127:
        seen = repr(number) if isinstance(number, (int, float, str)) else type(number).__name__
        return f"program_num is {seen[:40]}, expected 0-128"
    program = manifest.label_program(number)
    if program is None:
        return f"program {number} has no Slakh class"
    return program, False, manifest.program_to_class[number]
