"""Plans: what goes where is decided before any work, and told by --dry-run."""

import re
from pathlib import Path

import fakes
import pytest
from builds import shard_of
from click.testing import CliRunner, Result

from mt3data.build.build_folder import BuildFolder
from mt3data.build.plan import BuildConfig, Plan, ShardPlan, make_plan
from mt3data.build.run import build
from mt3data.build.shard_job import STATE
from mt3data.build.track_table import read_exclusions
from mt3data.cli.main import main
from mt3data.errors import UserError
from mt3data.shards.format import read_build_manifest
from mt3data.shards.windows import WindowConfig

TRAIN = [f"Track{n:05d}" for n in range(1, 13)]
VALIDATION = [f"Track{n:05d}" for n in range(1501, 1507)]
TRACKS = dict.fromkeys(TRAIN, "train") | dict.fromkeys(VALIDATION, "validation")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", TRACKS, seconds=3.0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mt3data.build.plan.MIN_SHARD_BYTES", 3 << 19
    )  # two tracks of two records each


def plan_of(source: Path, out: Path, windows: WindowConfig | None = None, **rest: object) -> Plan:
    windows = windows or WindowConfig(256, align="off")
    return make_plan(BuildConfig("demo", source, out, windows=windows, **rest))  # type: ignore[arg-type]


def content(plan: Plan, split: str) -> list[list[str]]:
    return [[p.track.id for p in s.tracks] for s in plan.shards if s.split == split]


def test_training_tracks_are_interleaved_over_shards_and_others_keep_their_order(
    source: Path, tmp_path: Path
) -> None:
    plan = plan_of(source, tmp_path)
    # By sha256("0|Track00001") and so on.
    assert content(plan, "train") == [
        ["Track00006", "Track00004"], ["Track00005", "Track00008"], ["Track00012", "Track00003"],
        ["Track00011", "Track00007"], ["Track00009", "Track00002"], ["Track00001", "Track00010"],
    ]  # fmt: skip
    assert sum(content(plan, "validation"), []) == VALIDATION


def test_another_seed_orders_training_tracks_in_another_way(source: Path, tmp_path: Path) -> None:
    plans = [plan_of(source, tmp_path, WindowConfig(256, seed=seed)) for seed in (0, 1)]
    assert content(plans[0], "train") != content(plans[1], "train")
    assert content(plans[0], "validation") == content(plans[1], "validation")
    assert sorted(sum(content(plans[1], "train"), [])) == TRAIN


@pytest.mark.parametrize(
    "windows",
    [WindowConfig(256, variants=3), WindowConfig(2048), WindowConfig(256, features=("audio",))],
)
def test_the_records_and_bytes_of_a_plan_are_those_that_are_built(
    source: Path, tmp_path: Path, windows: WindowConfig
) -> None:
    plan = plan_of(source, tmp_path, windows, tracks=6)
    written = {shard["name"]: shard for shard in build(plan).manifest["shards"]}
    assert {s.name: s.records for s in plan.shards} == {n: s["records"] for n, s in written.items()}
    for shard in plan.shards:
        assert 0.8 < written[shard.name]["bytes"] / shard.n_bytes < 1.05


def test_a_listed_track_is_left_out_as_if_it_had_failed_so(source: Path, tmp_path: Path) -> None:
    excluded = {"Track00003": ("audio", "too loud")}
    plan, whole = (
        plan_of(source, tmp_path / "bad", exclude=excluded),
        plan_of(source, tmp_path / "whole"),
    )
    assert plan.identity == whole.identity
    assert content(plan, "train") == content(whole, "train")
    summary, other = build(plan), build(whole)
    (row,) = summary.quarantined
    assert (row["track"], row["stage"], row["error"]) == ("Track00003", "audio", "too loud")
    ours, theirs = (
        {s["name"]: s["sha256"] for s in b.manifest["shards"]} for b in (summary, other)
    )
    assert {n for n in ours if ours[n] != theirs[n]} == {shard_of(other.folder, "Track00003")}
    with pytest.raises(UserError, match="is finished and holds Track00003, which --exclude lists"):
        build(plan_of(source, tmp_path / "whole", exclude=excluded))
    with pytest.raises(UserError, match="finished and leaves out Track00003, which --exclude does"):
        build(plan_of(source, tmp_path / "bad"))


def test_a_shard_that_is_done_is_done_again_where_a_track_of_it_is_listed_now(
    source: Path, tmp_path: Path
) -> None:
    def stop(shard: object) -> None:
        done.append(shard)
        if len(done) == len(plan.shards):
            raise KeyboardInterrupt

    plan, done = plan_of(source, tmp_path), list[object]()
    with pytest.raises(KeyboardInterrupt):  # when all shards are done, and nothing else
        build(plan, on_shard=stop)
    summary = build(plan_of(source, tmp_path, exclude={"Track00003": ("audio", "too loud")}))
    assert [row["track"] for row in summary.quarantined] == ["Track00003"]


def test_a_list_of_bad_tracks_may_leave_out_stage_and_reason(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("Track00001\n\nTrack00002\taudio\nTrack00003\taudio\ttoo loud\n")
    assert read_exclusions(tmp_path / "bad") == {
        "Track00001": ("listed", "left out"), "Track00002": ("audio", "left out"),
        "Track00003": ("audio", "too loud"),
    }  # fmt: skip


def test_a_list_of_bad_tracks_that_cannot_be_understood_is_refused(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="expected a list of tracks"):
        read_exclusions(tmp_path / "none")
    (tmp_path / "bad").write_text("Track00001\taudio\ttoo\tloud\n")
    with pytest.raises(UserError, match="line 1 has 4 columns; expected TRACK, stage, reason"):
        read_exclusions(tmp_path / "bad")
    with pytest.raises(
        UserError, match="'Track7', and none of the 18 tracks to build is called so"
    ):
        plan_of(source, tmp_path, exclude={"Track7": ("listed", "left out")})


def test_too_little_room_is_told_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.files.free_bytes", lambda folder: 1000)
    with pytest.raises(
        UserError, match=r"9\.\d MB needed for shards, 1\.0 kB free; .* another --out"
    ):
        build(plan_of(source, tmp_path))
    assert not list(tmp_path.rglob("*.tar*"))


# --- the command ---------------------------------------------------------------------------------


def run(source: Path, out: Path, *words: object) -> Result:
    options = ["--root", source, "--out", out, "--window", 256, "--no-download", "--workers", 2]
    command = ["build", "slakh", *options, *words]
    return CliRunner().invoke(main, [str(word) for word in command])


def table(printed: str) -> dict[str, list[str]]:
    """Rows of what --dry-run prints: tracks, hours, records, bytes, its unit, shards, done."""
    rows = (line.split() for line in printed.splitlines() if line.startswith("  "))
    return {name: rest for name, *rest in rows}


def test_a_dry_run_tells_what_would_be_built_and_writes_nothing(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(source, out, "--dry-run")
    assert result.exit_code == 0, result.output
    assert table(result.stdout) == {
        "split": ["tracks", "hours", "records", "bytes", "shards", "done"],
        "train": ["12", "0.010", "24", "6.5", "MB", "6", "0"],
        "validation": ["6", "0.005", "12", "3.2", "MB", "3", "0"],
        "all": ["18", "0.015", "36", "9.7", "MB", "9", "0"],
    }
    assert re.search(r"^9\.7 MB to write, \S+ .B free$", result.stdout, re.MULTILINE)
    assert re.search(r"^about \d+ s with 2 workers: Track\d+ takes one core 1/\d+ of its length$",
                     result.stdout, re.MULTILINE)  # fmt: skip
    assert not out.exists()


def test_a_dry_run_of_an_unfinished_build_tells_what_is_done(source: Path, tmp_path: Path) -> None:
    def stop(shard: object) -> None:
        raise KeyboardInterrupt

    windows = WindowConfig(256)
    with pytest.raises(KeyboardInterrupt):
        build(make_plan(BuildConfig("slakh", source, tmp_path, windows=windows)), on_shard=stop)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = run(source, tmp_path, "--dry-run")
    assert int(table(result.stdout)["all"][-1]) in (1, 2)  # the second may have been at its end
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert run(source, tmp_path).exit_code == 0
    result = run(source, tmp_path, "--dry-run")
    assert table(result.stdout)["all"][-1] == "9"
    assert "nothing is left to do" in result.stdout


def test_a_dry_run_names_a_build_that_is_in_the_way(source: Path, tmp_path: Path) -> None:
    (tmp_path / "slakh").mkdir()
    (tmp_path / "slakh" / "thesis.txt").touch()
    result = run(source, tmp_path, "--dry-run")
    assert result.exit_code == 2
    assert "slakh holds thesis.txt and no build; choose another --out" in result.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a web page"}'])
def test_a_folder_with_another_kind_of_manifest_is_refused(
    source: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "slakh").mkdir()
    (tmp_path / "slakh" / "manifest.json").write_text(text)
    for words in ([], ["--dry-run"]):
        result = run(source, tmp_path, *words)
        assert result.exit_code == 2, result.output
        assert "manifest.json: not a manifest of a build" in result.stderr
    assert (tmp_path / "slakh" / "manifest.json").read_text() == text


def test_a_state_record_that_cannot_be_read_is_made_anew(source: Path, tmp_path: Path) -> None:
    def stop(shard: ShardPlan) -> None:
        (plan.folder / STATE / f"{shard.name}.json").write_text("{")
        raise KeyboardInterrupt

    plan = plan_of(source, tmp_path, tracks=3)
    with pytest.raises(KeyboardInterrupt):
        build(plan, on_shard=stop)
    assert len(build(plan).manifest["shards"]) == len(plan.shards)


def test_force_builds_anew_beside_and_says_where(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path).exit_code == 0
    again = run(source, tmp_path, "--force", "--seed", 1)
    assert again.exit_code == 0, again.output
    assert f"--force: {tmp_path / 'slakh-2'}" in again.stderr
    assert read_build_manifest(tmp_path / "slakh-2")["seed"] == 1
    assert read_build_manifest(tmp_path / "slakh")["seed"] == 0


def test_what_force_began_is_continued_by_the_same_command(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, tmp_path)
    assert BuildFolder(plan).next_free().folder == tmp_path / "demo"
    plan.folder.mkdir()
    second = BuildFolder(plan).next_free()
    assert second.folder == tmp_path / "demo-2"
    with BuildFolder(second).lock():
        BuildFolder(second).begin()
    assert BuildFolder(plan).next_free().folder == tmp_path / "demo-2"
    other = plan_of(source, tmp_path, WindowConfig(256, seed=1))
    assert BuildFolder(other).next_free().folder == tmp_path / "demo-3"


def test_a_run_that_was_killed_before_it_wrote_its_plan_is_taken_up(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "demo" / STATE).mkdir(parents=True)
    (tmp_path / "demo" / STATE / "lock").touch()
    (tmp_path / "demo" / STATE / "plan.json.tmp-1").touch()
    assert len(build(plan_of(source, tmp_path, tracks=2)).manifest["shards"]) == 2
