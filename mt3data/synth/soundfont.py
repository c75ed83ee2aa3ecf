"""Reads SoundFonts (SF2): what they state about themselves, and single instruments of large ones.

The renderer parses a whole SoundFont for every stem, which takes a second where it has 500 MB. A file that
holds the sample data of one instrument alone gives the same sound in a fortieth of the time.

An SF2 file is a RIFF tree of chunks. `smpl` holds all samples. `phdr` lists presets, `inst` instruments and
`shdr` samples. A preset refers to instruments, and an instrument to samples, by generators in zones (bags).

Source: SoundFont Technical Specification 2.04.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from mt3data.errors import UserError
from mt3data.terminal import kind_of

DRUM_BANK = 128
INFO_KEYS = {b"INAM": "name", b"ICOP": "copyright", b"ICMT": "comment"}
GENERATOR = np.dtype([("operator", "<u2"), ("amount", "<u2")])
BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
PRESET = np.dtype(
    [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("", "V12")]
)
INSTRUMENT = np.dtype([("name", "S20"), ("bag", "<u2")])
SAMPLE = np.dtype([("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"),
                   ("loop_end", "<u4"), ("rate", "<u4"), ("pitch", "u1"), ("correction", "i1"),
                   ("link", "<u2"), ("type", "<u2")])  # fmt: skip
INSTRUMENT_OPERATOR, SAMPLE_OPERATOR = 41, 53
GUARD = 46  # zeros that follow every sample
PADDING = 4096  # samples of silence at both ends, to which samples that are left out refer


class SoundFont:
    """A SoundFont file, of which only the parts that are used are read.

    Raises:
        UserError: the file is missing or no SoundFont.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise UserError(f"SoundFont {path}: {kind_of(path)}; expected an .sf2 file")
        try:
            self._bytes = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise UserError(f"SoundFont {path} cannot be read ({reason})") from error
        if self._read(0, 4) != b"RIFF" or self._read(8, 4) != b"sfbk":
            raise UserError(f"{path} is not a SoundFont; expected an .sf2 file (RIFF sfbk)")
        self._chunks: dict[bytes, tuple[int, int, bytes]] = {}  # place, size, list that holds it
        self._find_chunks(12, len(self._bytes), b"")

    @cached_property
    def sha256(self) -> str:
        """The checksum of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def facts(self) -> dict[str, str]:
        """Returns file name, sha256, and what the file states about its name and its licence."""
        found = {"file": self.path.name, "sha256": self.sha256}
        for chunk, key in INFO_KEYS.items():
            if chunk in self._chunks:
                found[key] = self._chunk(chunk).split(b"\0")[0].decode("latin-1").strip()
        return found

    def has_instrument(self, program: int, is_drum: bool) -> bool:
        """Tells whether there is a preset of a program, or any drum kit."""
        presets = self._table(b"phdr", PRESET)[:-1]  # the last entry only ends the one before
        if is_drum:
            return bool((presets["bank"] == DRUM_BANK).any())
        return bool(((presets["bank"] == 0) & (presets["program"] == program)).any())

    def instrument(self, program: int, is_drum: bool) -> bytes:
        """Returns a SoundFont file with the samples of one preset alone.

        Presets keep their numbers. Of drum kits that are missing, the renderer takes kit 0.
        """
        return _instrument(self, program, DRUM_BANK if is_drum else 0)

    def _find_chunks(self, place: int, end: int, inside: bytes) -> None:
        while place + 8 <= end:
            name, size = self._read(place, 4), int.from_bytes(self._read(place + 4, 4), "little")
            if name == b"LIST":
                self._find_chunks(place + 12, place + 8 + size, self._read(place + 8, 4))
            else:
                self._chunks[name] = place + 8, size, inside
            place += 8 + size + size % 2

    def _read(self, place: int, size: int) -> bytes:
        return self._bytes[place : place + size].tobytes()

    def _chunk(self, name: bytes) -> bytes:
        return self._read(*self._chunks[name][:2])

    def _table(self, name: bytes, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self._chunk(name), dtype)

    def _samples_of(self, program: int, bank: int) -> set[int]:
        """Returns the numbers of all samples that a preset uses."""
        presets = self._table(b"phdr", PRESET)
        instruments = self._table(b"inst", INSTRUMENT)
        used = set()
        chosen = (presets["program"] == program) & (presets["bank"] == bank)
        for preset in np.flatnonzero(chosen[:-1]):  # the last entry only ends the one before
            for instrument in self._amounts(b"p", presets, int(preset), INSTRUMENT_OPERATOR):
                used |= set(self._amounts(b"i", instruments, instrument, SAMPLE_OPERATOR))
        return used

    def _amounts(self, kind: bytes, table: np.ndarray, entry: int, operator: int) -> list[int]:
        """Returns the amounts of one operator in all zones of a preset (p) or an instrument (i)."""
        bags = self._table(kind + b"bag", BAG)["generator"]
        generators = self._table(kind + b"gen", GENERATOR)
        first, last = bags[table["bag"][entry]], bags[table["bag"][entry + 1]]
        mine = generators[first:last]
        return [int(amount) for amount in mine["amount"][mine["operator"] == operator]]


@lru_cache(maxsize=256)
def _instrument(font: SoundFont, program: int, bank: int) -> bytes:
    used = font._samples_of(program, bank) or font._samples_of(0, bank)
    samples, data_place = font._table(b"shdr", SAMPLE).copy(), font._chunks[b"smpl"][0]
    pieces, place = [np.zeros(PADDING, "<i2")], PADDING
    for number in range(len(samples) - 1):
        sample = samples[number]
        if number in used:
            start, end = int(sample["start"]), int(sample["end"]) + GUARD
            pieces.append(
                np.frombuffer(font._read(data_place + 2 * start, 2 * (end - start)), "<i2")
            )
            for field in ("start", "end", "loop_start", "loop_end"):
                sample[field] = int(sample[field]) - start + place
            place += len(pieces[-1])
        else:
            for field, value in zip(("start", "end", "loop_start", "loop_end"), (64, 1024, 128, 512), strict=True):  # fmt: skip
                sample[field] = value
    data = np.concatenate([*pieces, np.zeros(PADDING, "<i2")]).tobytes()
    lists: dict[bytes, bytes] = {}
    for name, (_, _, inside) in font._chunks.items():
        if name != b"sm24":  # the low bits of 24-bit samples, which the renderer does not use
            body = {b"smpl": data, b"shdr": samples.tobytes()}.get(name) or font._chunk(name)
            lists[inside] = lists.get(inside, b"") + packed(name, body)
    return packed(b"RIFF", b"sfbk" + b"".join(packed(b"LIST", k + v) for k, v in lists.items()))


def packed(name: bytes, body: bytes) -> bytes:
    """Returns a RIFF chunk."""
    return name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)
