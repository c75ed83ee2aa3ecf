"""`check` finds whatever a disk, a copy or a hand can do to a build."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.report.plot_record import draw_record
from mt3data.shards.check import _all_finite, check
from mt3data.shards.index import ShardSet
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig

SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    root = fakes.slakh_tree(folder / "root", "demo", SPLITS, seconds=3.0)
    return build(make_plan(BuildConfig("demo", root, folder, windows=WindowConfig(256)))).folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def shard_of(folder: Path) -> Path:
    return folder / "train-00000-of-00001.tar"


def flip_a_bit(folder: Path) -> None:
    data = bytearray(shard_of(folder).read_bytes())
    data[len(data) // 2] ^= 1
    shard_of(folder).write_bytes(data)


def cut_at_a_member(folder: Path) -> None:
    offset = int(ShardSet(folder, "train").index["mel_offset"][-1]) - 512
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:offset])


def lose_a_shard(folder: Path) -> None:
    shard_of(folder).unlink()


def add_a_foreign_shard(folder: Path) -> None:
    (folder / "train-00001-of-00002.tar").write_bytes(b"")


def lose_the_index(folder: Path) -> None:
    (folder / "index" / "train.parquet").unlink()


def edit_the_card(folder: Path) -> None:
    path = folder / "README.md"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def bring_an_old_index(folder: Path) -> None:
    path = folder / "index" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (flip_a_bit, "train-00000-of-00001.tar: its bytes have changed"),
        (cut_at_a_member, "train-00000-of-00001.tar: .* bytes, the manifest says"),
        (lose_a_shard, "train-00000-of-00001.tar: missing"),
        (add_a_foreign_shard, "train-00001-of-00002.tar: not part of this build"),
        (lose_the_index, "index/train.parquet: missing"),
        (bring_an_old_index, "index/train.parquet: its bytes have changed"),
        (edit_the_card, "README.md: its bytes have changed"),
    ],
)
def test_harm_is_found_and_named(copy: Path, harm: Callable[[Path], None], complaint: str) -> None:
    import re

    harm(copy)
    faults = check(copy)
    assert any(re.search(complaint, fault) for fault in faults), faults


def test_a_stray_file_or_a_lost_index_is_one_fault(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"")
    assert check(copy) == [".DS_Store: not part of this build; move it elsewhere"]
    (copy / ".DS_Store").unlink()
    lose_the_index(copy)
    assert check(copy) == ["index/train.parquet: missing"]


def test_a_whole_build_has_no_faults(whole: Path) -> None:
    assert check(whole) == []
    assert check(whole, fast=True) == []


def test_a_build_without_records_is_whole_and_an_empty_source_of_a_mixture_is_named(
    whole: Path, tmp_path: Path
) -> None:
    root = fakes.slakh_tree(tmp_path / "root", "demo", SPLITS, seconds=3.0)
    config = BuildConfig("demo", root, tmp_path, windows=WindowConfig(256),
                         exclude=dict.fromkeys(SPLITS, ("listed", "left out")))  # fmt: skip
    empty = build(make_plan(config)).folder
    assert check(empty) == check(empty, fast=True) == []
    with pytest.raises(UserError, match=f"^no records in split 'train' of {empty}$"):
        IndexedShards([whole, empty])
    with pytest.raises(UserError, match="has no record 'x'; it has 0$"):
        draw_record(empty, "x", tmp_path / "x.png")


def test_fast_does_not_read_bodies(copy: Path) -> None:
    flip_a_bit(copy)
    assert check(copy, fast=True) == []


def change_and_reseal(folder: Path, member: str, change: Callable[[bytearray], None]) -> None:
    """Changes the bytes of one member and makes the manifest agree with the new shard."""
    source = ShardSet(folder, "train")
    start, size = (int(source.index[f"{member}_{what}"][0]) for what in ("offset", "size"))
    data = bytearray(shard_of(folder).read_bytes())
    body = data[start : start + size]
    change(body)
    data[start : start + size] = body
    shard_of(folder).write_bytes(data)
    reseal(folder, shard_of(folder).name)


def reseal(folder: Path, name: str) -> None:
    """Makes the manifest agree with a file as it is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    for entry in manifest["shards"] + manifest["files"]:
        if entry["name"] == name:
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_nan(body: bytearray) -> None:
    body[-2:] = np.float16(np.nan).tobytes()


def put_minus_infinity(body: bytearray) -> None:
    body[-2:] = np.float16(-np.inf).tobytes()


def put_foreign_token(body: bytearray) -> None:
    body[-4:-2] = np.int16(1500).tobytes()


def lose_the_end(body: bytearray) -> None:
    body[-2:] = np.int16(7).tobytes()


def tokens_of(body: bytearray) -> np.ndarray:
    return np.frombuffer(body, np.int16, offset=128)


def move_a_pitch(body: bytearray) -> None:
    tokens = tokens_of(body)
    tokens[np.flatnonzero((tokens > 3 + 1001) & (tokens < 3 + 1128))[0]] += 1


def say_tie_twice(body: bytearray) -> None:
    tokens_of(body)[-2] = 3 + 1131


def notes_of(body: bytearray) -> np.ndarray:
    return np.frombuffer(body, np.float64, offset=128).reshape(-1, 7)


def lower_a_note(body: bytearray) -> None:
    notes_of(body)[0, 2] -= 1


def end_a_note_too_early(body: bytearray) -> None:
    notes_of(body)[0, 1] = 0.0


def change_a_number(body: bytearray) -> None:
    place = body.index(b'"start_frame":0') + len('"start_frame":')
    body[place] = ord("7")


def change_a_value(body: bytearray) -> None:
    body[-2:] = np.float16(1.5).tobytes()


@pytest.mark.parametrize(
    ("member", "change", "complaint"),
    [
        ("mel", put_nan, "mel holds values that are not finite"),
        ("mel", put_minus_infinity, "mel holds values that are not finite"),
        ("mel", change_a_value, "mel differs from its checksum"),
        ("tokens", put_foreign_token, "token 1500 is outside the vocabulary of 1491"),
        ("tokens", lose_the_end, "tokens do not end with EOS"),
        ("tokens", move_a_pitch, "tokens are not those of its notes (1 of "),
        ("tokens", say_tie_twice, "tokens are not those of its notes (1 of "),
        ("notes", lower_a_note, "tokens are not those of its notes (0 of "),
        ("notes", end_a_note_too_early, "notes have no length"),
        ("json", change_a_number, "its json and the index differ"),
    ],
)
def test_a_record_that_makes_no_sense_is_found_even_if_its_checksum_fits(
    copy: Path, member: str, change: Callable[[bytearray], None], complaint: str
) -> None:
    change_and_reseal(copy, member, change)
    assert [complaint in fault for fault in check(copy)] == [True]


def change_table(folder: Path, name: str, change: Callable[[list[dict]], None]) -> None:
    """Changes rows of a table and makes the manifest agree."""
    table = pq.read_table(folder / name)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / name)
    reseal(folder, name)


INDEX, TRACKS, NOTES = "index/train.parquet", "tracks.parquet", "references-test.parquet"
SHARD = "train-00000-of-00001.tar"


@pytest.mark.parametrize(
    ("table", "change", "complaints"),
    [
        (INDEX, lambda rows: rows.pop(), [
            f"{INDEX}: 3 records, the manifest says 4",
            f"{INDEX}: 768 frames, the manifest says 1024",
            f"{INDEX}: 412 tokens, the manifest says 496",
            f"{TRACKS}: 2 records of Track00001, the index of train has 1",
            f"{SHARD}: 3 rows in the index, 4 records in the manifest",
            f"{SHARD}: members differ from the index, first at demo-Track00001-p0-0000256.json",
        ]),
        (INDEX, lambda rows: rows[1].update(mel_offset=0), [
            f"{SHARD}: members differ from the index, first at demo-Track00002-p0-0000256.mel.npy",
        ]),
        (INDEX, lambda rows: rows[0].update(n_tokens=3), [
            f"{INDEX}: 335 tokens, the manifest says 496",
            f"{SHARD}: demo-Track00002-p0-0000000: 164 tokens, the index says 3",
        ]),
        (INDEX, lambda rows: rows[3].update(shard="pipe:ls"), [
            f"{INDEX}: names pipe:ls, which is no shard of this split",
            f"{SHARD}: 3 rows in the index, 4 records in the manifest",
            f"{SHARD}: members differ from the index, first at demo-Track00001-p0-0000256.json",
        ]),
        (TRACKS, lambda rows: rows.pop(0), [
            f"{TRACKS}: 0 tracks of test, the manifest says 1",
            f"{TRACKS}: 0 records of Track00003, the index of test has 2",
            f"{NOTES}: notes of Track00003, which tracks.parquet does not have",
        ]),
        (TRACKS, lambda rows: rows[1].update(status="quarantined"), [
            f"{TRACKS}: 1 tracks of train, the manifest says 2",
            f"{TRACKS}: 0 records of Track00001, the index of train has 2",
        ]),
        (NOTES, lambda rows: rows[0].update(offset=0.0), [
            f"{NOTES}: Track00003: 1 of 56 notes have no length (offset <= onset); the first is note 0: "
            "onset 0.1 s, offset 0 s, pitch 40, velocity 60, program 29",
        ]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fast", [False, True])
def test_tables_that_disagree_are_found_even_if_their_checksums_fit(
    copy: Path, table: str, change: Callable, complaints: list[str], fast: bool
) -> None:
    change_table(copy, table, change)
    found = check(copy, fast=fast)
    if fast:  # the numbers of a record stand in its body
        complaints = [complaint for complaint in complaints if "the index says 3" not in complaint]
    assert found == complaints


def test_a_member_that_is_no_part_of_a_record_is_found(copy: Path) -> None:
    with tarfile.open(shard_of(copy)) as tar:
        files = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(shard_of(copy), "w", format=tarfile.USTAR_FORMAT) as tar:
        planted = tarfile.TarInfo(files[-1][0].name.partition(".")[0] + ".pyd")
        for member, data in [*files, (planted, b"")]:
            tar.addfile(member, io.BytesIO(data))
    reseal(copy, SHARD)
    want = [f"{SHARD}: members differ from the index, first at {planted.name}"]
    assert check(copy) == check(copy, fast=True) == want


def test_a_command_in_place_of_a_shard_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(SHARD, "pipe:touch planted"))
    with pytest.raises(UserError, match="names 'pipe:touch planted'; expected files of the build"):
        check(copy)


def test_many_faults_of_one_shard_are_counted_and_not_all_told(copy: Path) -> None:
    flip_a_bit(copy)
    change_table(copy, INDEX, lambda rows: [row.update(n_notes=0, track_frames=9) for row in rows])
    found = check(copy)
    assert found[0] == f"{SHARD}: its bytes have changed (sha256 differs from the manifest)"
    assert found[5:] == [f"{SHARD}: 5 more faults in this shard"]


def test_threads_find_the_same_and_every_byte_is_counted(copy: Path) -> None:
    flip_a_bit(copy)
    seen: list[int] = []
    assert check(copy, workers=3, on_bytes=seen.append) == check(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert sum(seen) == sum(entry["bytes"] for entry in manifest["shards"] + manifest["files"])


def test_a_flipped_bit_names_the_record_it_is_in(copy: Path) -> None:
    index = ShardSet(copy, "train").index
    data = bytearray(shard_of(copy).read_bytes())
    data[int(index["mel_offset"][2]) + 5000] ^= 1
    shard_of(copy).write_bytes(data)
    assert check(copy) == [
        f"{SHARD}: its bytes have changed (sha256 differs from the manifest)",
        f"{SHARD}: {index['key'][2]}: mel differs from its checksum in the index",
    ]


def test_audio_is_checked_as_mel_is(tmp_path: Path) -> None:
    root = fakes.slakh_tree(tmp_path / "root", "demo", {"Track00001": "train"}, seconds=2.0)
    windows = WindowConfig(256, features=("audio",))
    folder = build(make_plan(BuildConfig("demo", root, tmp_path, windows=windows))).folder
    assert check(folder) == []
    change_and_reseal(folder, "audio", lambda body: body.__setitem__(200, body[200] ^ 1))
    assert check(folder) == [f"{SHARD}: demo-Track00001-p0-0000000: audio differs from its checksum in the index"]  # fmt: skip


def test_every_float16_is_told_finite_or_not() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    told = [_all_finite(every[i : i + 1]) for i in range(len(every))]
    assert told == np.isfinite(every).tolist()
    assert _all_finite(np.float16([[65504, -65504], [0, -0.0]]))


@pytest.mark.parametrize(
    ("old", "new"), [('"right_context":"zeros"', '"right_context":"zerps"'), ('"fmin":20.0', '"fmin":21.0'), ("Track00002", "Track00042"), ('"num_velocity_bins"', '"bins"'), ('"fingerprint"', '"print"')]
)  # fmt: skip
def test_a_setting_that_was_changed_in_the_manifest_is_found(
    copy: Path, old: str, new: str
) -> None:
    path = copy / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert check(copy) == [
        "manifest.json: its settings or tracks have changed (the fingerprint differs); get it again, "
        "then check the rest"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "shards": [{}], "splits": {}}'])  # fmt: skip
def test_a_manifest_that_is_none_is_one_line(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json: not a manifest of a build"):
        check(copy)


@pytest.mark.parametrize("lost", ["files", "shards", "splits", "sha256", "bytes", "records"])
def test_a_manifest_that_lacks_something_is_one_line(copy: Path, lost: str) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(f'"{lost}":', '"other":', 1))
    with pytest.raises(UserError, match=rf"manifest.json: not a manifest of a build .*'{lost}'"):
        check(copy)
