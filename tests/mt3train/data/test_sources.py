"""Which builds a run reads: by pattern, by mixture, with weights."""

import pytest

from mt3data.errors import UserError
from mt3data.shards.format import find_builds
from mt3train.config import DataConfig
from mt3train.data.builds import builds_at, mixture_builds, weights_of


@pytest.mark.parametrize("pattern", ["*", "a", "", "[ab]"])
def test_builds_are_found_by_name_pattern_or_parent(tmp_path, pattern):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "manifest.json").touch()
    assert find_builds(str(tmp_path / pattern)) == [tmp_path / "a"]


def test_without_a_build_the_command_that_makes_one_is_named(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"1 path.*`mt3data build demo --out shards/`"):
        find_builds(str(tmp_path / "*"))
    with pytest.raises(UserError, match="nothing is there"):
        find_builds(str(tmp_path / "no" / "*"))


def builds_of(folder, *datasets):
    for name in datasets:
        (folder / name).mkdir()
        (folder / name / "manifest.json").touch()
    return find_builds(folder)


@pytest.fixture
def named_datasets(monkeypatch):
    """The manifest of a build states the name of its folder as its dataset."""
    read = "mt3train.data.builds.read_build_manifest"
    monkeypatch.setattr(read, lambda build: {"dataset": build.name})


MT3_SETS = ("cerberus4", "guitarset", "maestro_v3", "musicnet_em", "slakh", "urmp")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("{}/urmp,{}/demo", ["urmp", "demo"]),
        ("{}/urmp, {}/d*,", ["urmp", "demo"]),
        ("{}/urmp,{}/*", ["urmp", "demo", "slakh"]),  # each once
        ("{}/a,b", ["a,b"]),  # a folder's name may have commas
    ],
)
def test_several_builds_are_named_with_commas(tmp_path, where, found):
    folder = tmp_path / "shards"
    folder.mkdir()
    builds_of(folder, "demo", "slakh", "urmp")
    builds_of(tmp_path, "a,b")
    where = where.replace("{}/a", f"{tmp_path}/a").replace("{}", str(folder))
    assert [build.name for build in builds_at(where, DataConfig())] == found


def test_of_several_builds_the_one_that_is_not_there_is_named(tmp_path):
    builds_of(tmp_path, "demo")
    with pytest.raises(UserError, match=rf"^{tmp_path}/gone: no such folder"):
        builds_at(f"{tmp_path}/demo,{tmp_path}/gone", DataConfig())
    with pytest.raises(UserError, match=r"^https://a.b/c is an address"):
        builds_at(f"{tmp_path}/demo,https://a.b/c", DataConfig())


def test_a_mixture_takes_its_own_sets_at_its_own_temperature(tmp_path, named_datasets):
    builds = builds_of(tmp_path, *MT3_SETS, "demo")
    chosen, temperature = mixture_builds(builds, DataConfig(mixture="mt3", temperature=1.0))
    assert ([path.name for path in chosen], temperature) == (list(MT3_SETS), 10 / 3)
    assert mixture_builds(builds, DataConfig(temperature=1.0)) == (builds, 1.0)


def test_a_mixture_with_a_set_that_is_not_built_names_it(tmp_path, named_datasets):
    builds = builds_of(tmp_path, *MT3_SETS[:-1])
    with pytest.raises(UserError, match=r"has none of urmp; .*`mt3data build urmp`"):
        mixture_builds(builds, DataConfig(mixture="mt3"))


def test_weights_are_given_by_the_names_of_builds(tmp_path):
    builds = builds_of(tmp_path, "slakh", "demo")
    assert weights_of(builds, DataConfig()) is None
    assert weights_of(builds, DataConfig(weights={"slakh": 3, "demo": 1})) == [1, 3]
    for wrong in ({"slakh": 3}, {"slakh": 3, "demo": 1, "urmp": 1}, {"slakh": 3, "dmeo": 1}):
        with pytest.raises(UserError, match="the builds are demo, slakh; name each of them once"):
            weights_of(builds, DataConfig(weights=wrong))
