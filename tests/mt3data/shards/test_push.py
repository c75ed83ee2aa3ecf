"""push(): an address has the whole build, or no build manifest."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from remote import FaultyFileSystem, build_of, contents
from toys import QUICK

from mt3data.cli.main import main
from mt3data.errors import UserError
from mt3data.shards.cache import cached
from mt3data.shards.check import check
from mt3data.shards.push import Pushed, push

ADDRESS, PLACE = "faulty://bucket/builds/demo", "/bucket/builds/demo"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_of(tmp_path_factory.mktemp("push"), 3)


@pytest.fixture
def store() -> Iterator[type[FaultyFileSystem]]:
    FaultyFileSystem.reset()
    yield FaultyFileSystem
    FaultyFileSystem.reset()


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of uploaded files, in order."""
    names: list[str] = []

    def note(method: str) -> None:
        original = getattr(FaultyFileSystem, method)

        def noted(self: Any, first: str, second: Any, **rest: Any) -> Any:
            path = second if method == "put_file" else first
            names.append(path.removeprefix("/bucket/builds/demo/"))
            return original(self, first, second, **rest)

        monkeypatch.setattr(FaultyFileSystem, method, noted)

    for method in ("put_file", "pipe_file"):
        note(method)
    return names


def served() -> dict[str, bytes]:
    return {
        path.removeprefix("/bucket/builds/demo/"): file.getvalue()
        for path, file in FaultyFileSystem.store.items()
    }


def push_quick(folder: Path, address: str = ADDRESS, **options: Any) -> Pushed:
    return push(folder, address, retry_policy=QUICK, **options)


def test_a_pushed_build_is_the_build(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, uploads: list[str]
) -> None:
    files = contents(whole)
    assert push_quick(whole) == Pushed(len(files), sum(map(len, files.values())), 0)
    assert served() == files
    assert uploads[0] == "push.json" and uploads[-1] == "manifest.json"
    assert uploads.index("README.md") < uploads.index(next(n for n in files if n.endswith(".tar")))
    assert check(cached(ADDRESS, tmp_path, QUICK)) == []


def test_a_complete_upload_is_left_as_it_is(
    store: type[FaultyFileSystem], whole: Path, uploads: list[str]
) -> None:
    push_quick(whole)
    uploads.clear()
    assert push_quick(whole) == Pushed(0, 0, len(contents(whole)) - 1)
    assert uploads == []


def test_a_lost_file_is_uploaded_again(
    store: type[FaultyFileSystem], whole: Path, uploads: list[str]
) -> None:
    push_quick(whole)
    uploads.clear()
    del store.store["/bucket/builds/demo/README.md"]
    assert push_quick(whole).files == 1
    assert uploads == ["README.md"]
    assert served() == contents(whole)


def test_an_interrupted_upload_is_continued(
    store: type[FaultyFileSystem], whole: Path, uploads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FaultyFileSystem.put_file

    def full(self: Any, source: str, path: str, **rest: Any) -> Any:
        if path.endswith(".tar"):
            raise PermissionError("quota exceeded")
        return original(self, source, path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(FaultyFileSystem, "put_file", full)
        with pytest.raises(UserError, match=f"{ADDRESS}: quota exceeded"):
            push_quick(whole)
    assert "manifest.json" not in served() and "push.json" in served()
    done = set(uploads) - {"push.json"}
    uploads.clear()
    push_quick(whole)
    assert not done & set(uploads)
    assert served() == contents(whole)


def test_what_another_upload_left_is_not_trusted(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    files = contents(whole)
    for name, data in files.items():  # of the same sizes, without the mark of this build
        if name != "manifest.json":
            FaultyFileSystem().pipe_file(f"/bucket/builds/demo/{name}", bytes(len(data)))
    with pytest.raises(UserError, match="has other files .README.md, index, .*--force"):
        push_quick(whole)
    push_quick(whole, force=True)
    assert served() == files


def test_an_upload_of_another_build_is_not_mixed_with_this_one(
    store: type[FaultyFileSystem], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FaultyFileSystem().pipe_file(f"{PLACE}/push.json", b"other")
    with pytest.raises(UserError, match="another build, whose upload is not complete"):
        push_quick(whole)
    assert served() == {"push.json": b"other"}
    original = FaultyFileSystem.put_file

    def put(self: Any, source: str, path: str, **rest: Any) -> Any:
        self.pipe_file(f"{PLACE}/push.json", b"other")  # another process begins
        return original(self, source, path, **rest)

    monkeypatch.setattr(FaultyFileSystem, "put_file", put)
    with pytest.raises(UserError, match="another build was uploaded there meanwhile"):
        push_quick(whole, force=True)
    assert "manifest.json" not in served()


def test_half_a_manifest_of_this_upload_is_written_again(
    store: type[FaultyFileSystem], whole: Path
) -> None:
    push_quick(whole)
    files = contents(whole)
    digest = hashlib.sha256(files["manifest.json"]).hexdigest().encode()
    for name, data in (("push.json", digest), ("manifest.json", files["manifest.json"][:99])):
        FaultyFileSystem().pipe_file(f"{PLACE}/{name}", data)
    assert push_quick(whole).files == 1
    assert served() == files


@pytest.mark.parametrize("name", [".gitattributes", "sub/.keep"])
def test_hidden_files_of_a_service_are_left(
    store: type[FaultyFileSystem], whole: Path, name: str
) -> None:
    FaultyFileSystem().pipe_file(f"{PLACE}/{name}", b"text")
    if name.startswith("."):
        push_quick(whole, ADDRESS + "/")
        assert served() == contents(whole) | {name: b"text"}
    else:
        with pytest.raises(UserError, match="has other files .sub.;"):
            push_quick(whole)


def test_another_build_is_replaced_with_force_alone(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    push_quick(whole)
    other = json.loads(store.store["/bucket/builds/demo/manifest.json"].getvalue())
    other["files"].append({"name": "old.md", "bytes": 3, "sha256": "0" * 64})
    for name, data in (("manifest.json", json.dumps(other).encode()), ("old.md", b"old")):
        FaultyFileSystem().pipe_file(f"{PLACE}/{name}", data)
    before = served()
    with pytest.raises(UserError, match="has another build; .* --force"):
        push_quick(whole)
    assert served() == before
    assert push_quick(whole, force=True).files == len(contents(whole))
    assert served() == contents(whole)


def test_a_damaged_build_is_not_uploaded(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    shard = next(copy.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"{shard.name}: its bytes have changed"):
        push_quick(copy)
    assert served() == {}


def test_a_partial_build_is_not_uploaded(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    push_quick(whole)
    with pytest.raises(UserError, match="holds only some shards of a build"):
        push_quick(cached(ADDRESS, tmp_path, QUICK, max_bytes=1 << 30), "faulty://bucket/two")


def test_an_upload_that_arrives_short_is_reported(
    store: type[FaultyFileSystem], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FaultyFileSystem, "put_file",
        lambda self, source, path, **rest: self.pipe_file(path, b"short"),
    )  # fmt: skip
    with pytest.raises(UserError, match="has 5 bytes after its upload, expected"):
        push_quick(whole)
    assert "manifest.json" not in served()


@pytest.mark.parametrize("as_address", [False, True])
def test_a_build_is_copied_to_a_path(whole: Path, tmp_path: Path, as_address: bool) -> None:
    target = tmp_path / "disk" / "demo"
    push_quick(whole, target.as_uri() if as_address else str(target))
    assert contents(target) == contents(whole)
    assert check(target) == []


def test_addresses_that_cannot_be_written_are_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="a web server takes no uploads"):
        push_quick(whole, "https://example.org/demo")
    with pytest.raises(UserError, match="is not read; expected a folder, or an address"):
        push_quick(whole, "pipe:cat")
    for place in (whole, whole / "inside", whole.parent):
        for address in (str(place), place.as_uri(), f"local://{place}"):
            with pytest.raises(UserError, match="is the folder of the build itself, or one is ins"):
                push_quick(whole, address)
    with pytest.raises(UserError, match=r"relative is read as the name of a machine; .*file:///"):
        push_quick(whole, "file://relative/folder")
    with pytest.raises(UserError, match="s3:/bucket/demo: s3: is not read; expected a folder, or"):
        push_quick(whole, "s3:/bucket/demo")


@pytest.mark.parametrize("error", [FileExistsError(17, "x"), OSError(28, "x"), OSError(22, "x")])
def test_faults_that_stay_are_reported_at_once(
    store: type[FaultyFileSystem], whole: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    calls = []

    def fail(self: Any, path: str, data: bytes, **rest: Any) -> None:
        calls.append(path)
        raise error

    monkeypatch.setattr(FaultyFileSystem, "pipe_file", fail)
    with pytest.raises(UserError, match=f"^{ADDRESS}: .*x"):
        push_quick(whole)
    assert len(calls) == 1


@pytest.mark.parametrize("command", ["info", "check", "report -o a.html", "push s3://bucket/two"])
def test_commands_for_a_folder_name_the_way_from_an_address_to_a_folder(command: str) -> None:
    name, *rest = command.split()
    done = CliRunner().invoke(main, [name, "s3://bucket/one", *rest])
    assert done.exit_code == 2
    assert "Copy the build with `mt3data download s3://bucket/one --cache DIR`" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cache c --select x", "--select, --stream, --from and --source are for datasets"),
        ("", "name a folder for it with --cache"),
    ],
)
def test_options_of_datasets_are_refused_for_the_address_of_a_build(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["download", ADDRESS, *arguments.split()])
    assert done.exit_code == 2 and message in done.output
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_upload_exits_with_130(
    store: type[FaultyFileSystem], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, source: str, path: str, **rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FaultyFileSystem, "put_file", stop)
        done = CliRunner().invoke(main, ["push", str(whole), ADDRESS])
    assert (done.exit_code, list(served())) == (130, ["push.json"])
    with pytest.raises(UserError, match="manifest.json: no such file"):
        cached(ADDRESS, whole.parent / "none", QUICK)
    assert CliRunner().invoke(main, ["push", str(whole), ADDRESS]).exit_code == 0
    assert served() == contents(whole)


def test_the_command_prints_what_it_uploaded(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "demo"
    done = CliRunner().invoke(main, ["push", str(whole), str(target)])
    assert done.exit_code == 0
    n_files = len(contents(whole))
    assert f"{target}: {n_files} files uploaded, " in done.output
    again = CliRunner().invoke(main, ["push", str(whole), str(target)])
    assert f"{target}: 0 files uploaded, 0 bytes; {n_files - 1} files there before" in again.output
    wrong = CliRunner().invoke(main, ["push", str(tmp_path / "none"), str(target)])
    assert wrong.exit_code == 2
