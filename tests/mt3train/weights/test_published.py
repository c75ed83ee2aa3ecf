"""Published weights from a server on 127.0.0.1, in the two layouts that they have."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from click.testing import CliRunner, Result
from events import HANG_SECONDS, wait_until
from foreign import arrays_of, pth_state, randomised_model, write_t5x
from recordings import record
from server import Fault, Publisher, publisher
from toys import QUICK

import mt3train
from mt3data.datasets.manifest import Source
from mt3data.download import http
from mt3data.errors import UserError
from mt3data.files import file_lock
from mt3train.cli.main import main
from mt3train.model import MT3, ModelConfig
from mt3train.training.resume import init_from_checkpoint
from mt3train.weights import published
from mt3train.weights.checkpoint import CheckpointInfo, checksum, load_model
from mt3train.weights.convert import PUBLISHED, infer
from mt3train.weights.published import KNOWN, TABLE, Bucket, PublishedWeights, get

SIZES = ModelConfig(emb_dim=8, num_heads=6, head_dim=2, mlp_dim=8)  # with MT3's 8 + 8 layers
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:b8a3807e\nsize 183672643\n"
PREFIX, LIST, FILE, MIRROR = "checkpoints/mt3/", "/b/mt3/o", "/a/mt3.pth", "/b/mt3.pth"


@dataclass(frozen=True)
class Fake:
    """A small model as both publishers keep it.

    Attributes:
        objects: of the bucket: path below the prefix -> content.
        pth: the single file.
        sha256: of all arrays.
    """

    model: MT3
    objects: dict[str, bytes]
    pth: bytes
    sha256: str

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def make_fake(folder: Path, config: ModelConfig) -> Fake:
    model, packed = randomised_model(config), io.BytesIO()
    write_t5x(folder / "t5x", arrays_of(model), inline=("scale",))
    torch.save(pth_state(model), packed)
    objects = {
        path.relative_to(folder / "t5x").as_posix(): path.read_bytes()
        for path in (folder / "t5x").rglob("*") if path.is_file()
    }  # fmt: skip
    return Fake(model, objects, packed.getvalue(), checksum(model.state_dict()))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return make_fake(tmp_path_factory.mktemp("fake"), SIZES)


def entry(name: str, content: bytes) -> dict[str, Any]:
    """Describes an object as the listing of a bucket does."""
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    return {"kind": "storage#object", "name": name, "size": str(len(content)), "md5Hash": md5,
            "crc32c": "AAAAAA==", "generation": "1"}  # fmt: skip


def page(number: int, prefix: str = PREFIX) -> str:
    """Returns the address of a page of the listing."""
    query = {"prefix": prefix, "maxResults": "1000"} | (
        {"pageToken": f"p{number}=="} if number else {}
    )
    return f"{LIST}?{urlencode(query, safe='/=')}"


def serve_bucket(web: Publisher, objects: dict[str, bytes], prefix: str = PREFIX) -> None:
    """Serves objects, and a listing in pages of 100 that begins with the marker of the folder."""
    items = [entry(prefix, b"")] + [entry(prefix + path, data) for path, data in objects.items()]
    pages = [items[i : i + 100] for i in range(0, len(items), 100)]
    for number, part in enumerate(pages):
        more = {"nextPageToken": f"p{number + 1}=="} if number + 1 < len(pages) else {}
        document = {"kind": "storage#objects", "items": part} | more
        web.files[page(number, prefix)] = json.dumps(document).encode()
    web.files |= {f"/mt3/{prefix}{path}": data for path, data in objects.items()}


@pytest.fixture
def web(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """Serves both layouts of mt3, which the table then names; the cache is an empty folder."""
    monkeypatch.setenv("MT3KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "RETRY_POLICY", QUICK)
    monkeypatch.chdir(tmp_path)
    with publisher({FILE: fake.pth, MIRROR: fake.pth}) as served:
        serve_bucket(served, fake.objects)
        file = Source(
            "file", served.url + FILE, (served.url + MIRROR,), bytes=len(fake.pth),
            sha256=hashlib.sha256(fake.pth).hexdigest(), status="several",
        )  # fmt: skip
        bucket = Bucket(PREFIX, 295, served.url + LIST, served.url + "/mt3")
        monkeypatch.setitem(
            KNOWN, "mt3", replace(
                KNOWN["mt3"], n_bytes=len(fake.pth), n_parameters=fake.n_parameters,
                sources=(file, bucket),
            ),
        )  # fmt: skip
        yield served


def one_source(kind: type) -> PublishedWeights:
    sources = tuple(source for source in KNOWN["mt3"].sources if isinstance(source, kind))
    return replace(KNOWN["mt3"], sources=sources)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def asked(web: Publisher) -> list[str]:
    return [path for path, _, _ in web.requests]


def sha256_of(path: Path) -> str:
    return checksum(load_model(path)[0].state_dict())


# --- what is published ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", TABLE, ids=lambda one: one.name)
def test_the_table_fits_the_published_networks(weights: PublishedWeights) -> None:
    vocabulary, _ = PUBLISHED[weights.family]
    config = ModelConfig(vocab_size=1536 if vocabulary.num_velocity_bins == 1 else 1664)
    if weights.name == "ismir2022_base":
        config = replace(config, emb_dim=768, num_heads=12, mlp_dim=2048, num_encoder_layers=12,
                         num_decoder_layers=12)  # fmt: skip
    with torch.device("meta"):
        model = MT3(config)
    assert sum(p.numel() for p in model.parameters()) == weights.n_parameters
    assert infer(Path("released"), model.state_dict())[1].model.num_heads == weights.num_heads
    for source in weights.sources:
        if isinstance(source, Source):
            assert len(source.sha256) == 64 and all(u.startswith("https://") for u in source.urls)
        else:
            assert source.prefix == f"checkpoints/{weights.name}/"


def test_the_list_states_size_licence_use_and_what_is_here(web: Publisher, fake: Fake) -> None:
    listed = run("weights")
    row = next(line for line in listed.stdout.splitlines() if line.startswith("mt3 "))
    assert row.split()[1:5] == [f"{len(fake.pth) / 1e3:.1f}", "kB", "no", "unstated"]
    assert "all instruments and drums" in row
    run("weights", "get", "mt3", "--yes")
    facts = {one["name"]: one for one in json.loads(run("weights", "--json").stdout)}
    assert [*facts] == ["mt3", "ismir2021", "ismir2022_small", "ismir2022_base"]
    assert (facts["mt3"]["here"], facts["ismir2021"]["here"]) == (True, False)
    assert facts["mt3"]["sources"][0]["urls"] == [web.url + FILE, web.url + MIRROR]
    assert facts["mt3"]["bytes"] == len(fake.pth)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/mt3kit"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/mt3kit"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/mt3kit"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "home/Library/Caches/mt3kit"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/mt3kit"),
        ("linux", {"MT3KIT_CACHE": "~/here"}, "home/here"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str],
    expected: str,
) -> None:  # fmt: skip
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "MT3KIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert published.cache_folder() == tmp_path / expected


# --- downloads ------------------------------------------------------------------------------------


def test_both_sources_give_the_same_arrays_and_checksum(
    web: Publisher, fake: Fake, tmp_path: Path
) -> None:
    done = run("weights", "get", "mt3", "--yes")
    assert done.exit_code == 0, done.output
    assert f"{fake.n_parameters:,} parameters, sha256 of the arrays {fake.sha256}" in done.stdout
    assert asked(web) == [FILE]
    path = tmp_path / "cache" / "mt3.safetensors"
    path.unlink()
    web.requests.clear()
    assert get(one_source(Bucket), yes=True) == path
    assert sha256_of(path) == fake.sha256
    objects = [f"/mt3/{PREFIX}{name}" for name in fake.objects]
    assert len(objects) == 295
    assert sorted(asked(web)) == sorted([page(0), page(1), page(2), *objects])
    assert {file.name for file in path.parent.iterdir()} == {path.name, "mt3.lock"}


def test_weights_that_are_here_are_not_requested_again(web: Publisher, fake: Fake) -> None:
    run("weights", "get", "mt3", "--yes")
    web.requests.clear()
    again = run("weights", "get", "mt3", "--offline")
    assert again.exit_code == 0 and fake.sha256 in again.stdout and asked(web) == []


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ismir2021", replace(SIZES, vocab_size=1664)),
        ("ismir2022_small", SIZES),
        ("ismir2022_base", replace(SIZES, num_heads=12, num_encoder_layers=3)),
    ],
)
def test_a_checkpoint_of_the_bucket_gets_its_own_heads_and_vocabulary(
    web: Publisher, tmp_path: Path, name: str, config: ModelConfig
) -> None:
    config = replace(config, num_decoder_layers=1)
    other = make_fake(tmp_path, config)
    serve_bucket(web, other.objects, f"checkpoints/{name}/")
    bucket = Bucket(f"checkpoints/{name}/", None, web.url + LIST, web.url + "/mt3")
    weights = replace(KNOWN[name], n_parameters=other.n_parameters, sources=(bucket,))
    model, info = load_model(get(weights, yes=True))
    assert checksum(model.state_dict()) == other.sha256
    assert info.model == config
    assert (info.vocabulary, info.frames) == PUBLISHED[weights.family]


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ({FILE: [Fault(drop_after=90_000)]}, [FILE, FILE]),
        ({FILE: [Fault(drop_after=90_000), Fault(no_range=True)]}, [FILE, FILE]),
        ({FILE: [Fault(redirect=MIRROR)]}, [FILE, MIRROR]),
        ({FILE: [Fault(status=404)]}, [FILE, MIRROR]),
        ({FILE: [Fault(truncate=100)]}, [FILE, MIRROR]),
        ({FILE: [Fault(wrong_bytes=True)]}, [FILE, MIRROR]),
    ],
    ids=["drop", "drop, no range", "redirect", "404", "wrong size", "wrong hash"],
)
def test_the_file_arrives_in_spite_of(
    web: Publisher, fake: Fake, faults: dict[str, list[Fault]], requests: list[str]
) -> None:
    web.faults |= faults
    assert sha256_of(get(one_source(Source), yes=True)) == fake.sha256
    assert asked(web) == requests


def test_the_mirror_serves_what_is_only_a_pointer_at_the_first_address(
    web: Publisher, fake: Fake
) -> None:
    web.files[FILE] = POINTER
    assert sha256_of(get(one_source(Source), yes=True)) == fake.sha256
    assert asked(web) == [FILE, MIRROR]


def test_without_the_file_the_bucket_is_taken(
    web: Publisher, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    web.files[FILE] = web.files[MIRROR] = POINTER
    assert sha256_of(get(KNOWN["mt3"], yes=True)) == fake.sha256
    assert f"the server has {len(POINTER)} bytes" in capsys.readouterr().err
    assert asked(web)[:3] == [FILE, MIRROR, page(0)]


def test_dropped_connections_of_the_bucket_are_resumed(web: Publisher, fake: Fake) -> None:
    tree = f"/mt3/{PREFIX}checkpoint"
    web.faults = {page(1): [Fault(drop_after=50)], tree: [Fault(drop_after=70), Fault(status=503)]}
    assert sha256_of(get(one_source(Bucket), yes=True)) == fake.sha256
    assert web.ranges(tree) == ["", "bytes=70-", "bytes=70-"]


FIRST = f"{PREFIX}target.decoder.logits_dense.kernel/0.0"
Change = Callable[[dict[str, Any]], object]


def first_item(**changes: Any) -> Change:
    """Changes the first object after the marker; None removes a key."""

    def change(document: dict[str, Any]) -> None:
        item = document["items"][1] | changes
        document["items"][1] = {key: value for key, value in item.items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("number", "change", "complaint"),
    [
        (0, lambda page: page.pop("nextPageToken"), "99 objects in .* expected 295"),
        (1, lambda page: page["items"].pop(), "294 objects in .* expected 295"),
        (2, lambda page: page.update(items=[]), "199 objects in .* expected 295"),
        (2, lambda page: page.update(nextPageToken="p0=="), "answers 404"),
        (1, lambda page: page.update(nextPageToken="p1=="), "more than 20 pages"),
        (1, lambda page: page.update(nextPageToken=7), "nextPageToken is 7; expected text"),
        (0, first_item(name=f"{PREFIX}.."), "'..' cannot be the name"),
        (0, first_item(name=f"{PREFIX}../x"), "'..' cannot be the name"),
        (0, first_item(name=f"{PREFIX}target.a/../../x"), "expected a file of a checkpoint"),
        (0, first_item(name=f"{PREFIX}/etc"), "'' cannot be the name"),
        (0, first_item(name=f"{PREFIX}a\\b"), "cannot be the name"),
        (0, first_item(name="checkpoints/other/checkpoint"), "expected a file of a checkpoint"),
        (0, first_item(size="99999999"), "99,999,999 bytes; expected a file of a checkpoint"),
        (0, first_item(size="-1"), "size is '-1'"),
        (0, first_item(md5Hash=None), "md5Hash' is missing"),
        (0, first_item(md5Hash="AAAAAAAAAAAAAAAAAAAAAA=="), "md5 is [0-9a-f]{32}, expected 0{32}"),
        (0, first_item(size="7"), "bytes, expected 7"),
        (0, lambda page: page["items"].__setitem__(1, page["items"][2]), "295 objects .* different"),
    ],
    ids=[
        "no token of the next page", "an object missing", "an empty page", "an unknown token",
        "pages without end", "a token that is no text", "..", "../x", "a climb", "a root",
        "a backslash", "another folder", "a huge object", "a negative size", "no md5",
        "another md5", "another size", "an object twice",
    ],
)  # fmt: skip
def test_a_wrong_listing_is_refused_in_one_line(
    web: Publisher, tmp_path: Path, number: int, change: Change, complaint: str
) -> None:
    document = json.loads(web.files[page(number)])
    change(document)
    web.files[page(number)] = json.dumps(document).encode()
    with pytest.raises(UserError, match=complaint) as error:
        get(one_source(Bucket), yes=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache" / "mt3.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("path", "content", "complaint"),
    [
        (page(0), b"<!doctype html><title>Sign in</title>", "not a listing of a bucket"),
        (page(1), b'{"items": [', "not a listing of a bucket"),
        (f"/mt3/{FIRST}", POINTER, f"the server has {len(POINTER)} bytes, expected"),
        (f"/mt3/{FIRST}", None, "the server answers 404"),
        (f"/mt3/{FIRST}", "flipped", "md5 is"),
        (f"/mt3/{PREFIX}checkpoint", b"<html>", "the server has 6 bytes"),
    ],
    ids=["HTML", "half a page", "pointer", "404", "wrong bytes", "HTML in place of an object"],
)
def test_a_wrong_answer_of_the_bucket_is_refused_in_one_line(
    web: Publisher, tmp_path: Path, path: str, content: bytes | str | None, complaint: str
) -> None:
    if isinstance(content, str):
        content = bytes(255 - byte for byte in web.files[path])
    if content is None:
        del web.files[path]
    else:
        web.files[path] = content
    with pytest.raises(UserError, match=complaint) as error:
        get(one_source(Bucket), yes=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache" / "mt3.safetensors").exists()


def test_objects_without_an_array_that_the_tree_names_are_refused(
    web: Publisher, fake: Fake
) -> None:
    """No number of objects is known of this listing, so the tree alone shows what is missing."""
    kept = {path: data for path, data in fake.objects.items() if "logits_dense" not in path}
    for number in range(3):
        del web.files[page(number)]
    serve_bucket(web, kept)
    bucket = Bucket(PREFIX, None, web.url + LIST, web.url + "/mt3")
    with pytest.raises(UserError, match="logits_dense.kernel, which is missing"):
        get(replace(KNOWN["mt3"], sources=(bucket,)), yes=True)


def test_another_network_than_the_table_states_is_refused(web: Publisher, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mt3 with .* parameters; expected ismir2021 with"):
        get(replace(one_source(Source), family="ismir2021"), yes=True)
    assert not (tmp_path / "cache" / "mt3.safetensors").exists()


def start(weights: PublishedWeights) -> subprocess.Popen[bytes]:
    """Starts a process that gets weights."""
    code = (
        "from mt3data.datasets.manifest import Source\n"
        "from mt3train.weights.published import Bucket, PublishedWeights, get\n"
        f"get({weights!r}, yes=True)"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_killed_download_of_the_file_continues_at_its_last_byte(
    web: Publisher, fake: Fake, tmp_path: Path
) -> None:
    web.faults[FILE] = [Fault(hang_after=90_000)]
    process, part = start(one_source(Source)), tmp_path / "cache" / "mt3.download" / "mt3.pth.part"
    wait_until(lambda: part.is_file() and part.stat().st_size == 1 << 16, process)
    process.kill()
    process.wait()
    assert sha256_of(get(one_source(Source), yes=True)) == fake.sha256
    assert web.ranges(FILE) == ["", "bytes=65536-"]


def test_a_killed_download_of_the_bucket_requests_only_what_is_missing(
    web: Publisher, fake: Fake, tmp_path: Path
) -> None:
    middle = sorted(fake.objects)[150]
    web.faults[f"/mt3/{PREFIX}{middle}"] = [Fault(hang_after=5)]
    process = start(one_source(Bucket))
    assert web.hanging.wait(HANG_SECONDS)
    process.kill()
    process.wait()
    (folder,) = (tmp_path / "cache" / "mt3.download").iterdir()
    done = {name for name in fake.objects if (folder / name).is_file()}
    assert len(done) > 140
    web.requests.clear()
    assert sha256_of(get(one_source(Bucket), yes=True)) == fake.sha256
    missing = {f"/mt3/{PREFIX}{name}" for name in fake.objects.keys() - done}
    # A set: the server may answer requests of the killed process after the list was cleared.
    assert set(asked(web)) == {page(0), page(1), page(2), *missing}


def test_a_process_waits_for_another_one_that_downloads_the_same_weights(
    web: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = get(KNOWN["mt3"], yes=True)
    aside = made.replace(tmp_path / "aside.safetensors")
    web.requests.clear()
    agreed, found = threading.Event(), list[Path]()
    monkeypatch.setattr(published, "_require_consent", lambda *_: agreed.set())
    second = threading.Thread(target=lambda: found.append(get(KNOWN["mt3"])))
    with file_lock(tmp_path / "cache" / "mt3.lock"):
        second.start()
        assert agreed.wait(HANG_SECONDS)
        aside.replace(made)
    second.join(HANG_SECONDS)
    assert found == [made] and asked(web) == []


def test_damaged_weights_in_the_cache_are_downloaded_again(web: Publisher, fake: Fake) -> None:
    path = get(KNOWN["mt3"], yes=True)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert sha256_of(get(KNOWN["mt3"], yes=True)) == fake.sha256
    assert asked(web) == [FILE, FILE]


# --- consent --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that a person reads or writes."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_size_and_licence_are_shown_and_one_question_asked_first(
    web: Publisher, monkeypatch: pytest.MonkeyPatch, fake: Fake, answer: str
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr(sys, "stderr", shown)
    if answer == "y":
        assert sha256_of(published.resolve("mt3")) == fake.sha256
    else:
        with pytest.raises(UserError, match="nothing was downloaded"):
            published.resolve("mt3")
        assert asked(web) == []
    assert shown.getvalue().count("[y/N]") == 1
    assert f"{len(fake.pth) / 1e3:.1f} kB from 127.0.0.1" in shown.getvalue()
    assert "licence unstated" in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["weights", "get", "mt3"], "--yes"),
        (["weights", "get", "mt3", "--offline"], "--offline allows no download"),
        (["weights", "get", "mt3", "--offline", "--yes"], "--offline allows no download"),
        (["transcribe", "song.wav", "--checkpoint", "mt3", "-o", "a.mid"], "weights get mt3`"),
    ],
)
def test_without_a_terminal_or_offline_one_line_states_what_to_do(
    web: Publisher, tmp_path: Path, words: list[str], advice: str
) -> None:
    record(tmp_path / "song.wav", 0.2)
    done = run(*words)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and advice in done.stderr
    assert asked(web) == []


def test_no_answer_is_an_interruption(web: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt):
        published.resolve("mt3")
    assert asked(web) == []


def test_one_of_several_processes_of_torchrun_never_asks(
    web: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(UserError, match="`mt3train weights get mt3`"):
        published.resolve("mt3")
    assert asked(web) == []


def test_an_unknown_name_lists_the_known_ones(web: Publisher) -> None:
    done = run("weights", "get", "mt4", "--yes")
    assert done.exit_code == 2
    assert "mt3, ismir2021, ismir2022_small, ismir2022_base" in done.stderr


# --- the name in place of a file ------------------------------------------------------------------


def test_the_name_is_valid_wherever_a_checkpoint_is(
    web: Publisher, fake: Fake, tmp_path: Path
) -> None:
    get(KNOWN["mt3"], yes=True)
    song = record(tmp_path / "song.wav", 0.2)
    page = tmp_path / "song.html"
    done = run("transcribe", song, "--checkpoint", "mt3", "-o", page)
    assert done.exit_code == 0, done.output
    assert "Model: mt3.safetensors" in page.read_text()
    model = mt3train.Transcriber.from_pretrained("mt3", device="cpu").model
    assert checksum(model.state_dict()) == fake.sha256
    assert checksum(mt3train.load_model("mt3")[0].state_dict()) == fake.sha256
    new = MT3(SIZES)
    init_from_checkpoint(new, "mt3", CheckpointInfo(model=SIZES, vocabulary=PUBLISHED["mt3"][0]))
    assert checksum(new.state_dict()) == fake.sha256


def test_the_name_wins_over_a_folder_and_a_path_means_the_folder(
    web: Publisher, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(KNOWN["mt3"], yes=True)
    (tmp_path / "mt3").mkdir()
    capsys.readouterr()
    assert checksum(mt3train.load_model("mt3")[0].state_dict()) == fake.sha256
    assert "./mt3 means the file or folder here" in capsys.readouterr().err
    song = record(tmp_path / "song.wav", 0.2)
    for typed in ("./mt3", tmp_path / "mt3"):
        done = run("transcribe", song, "-o", "a.mid", "--checkpoint", typed)
        assert done.exit_code == 2 and "mt3 holds no checkpoint-" in done.stderr
    for path in (Path("mt3"), "./mt3"):
        with pytest.raises(UserError, match="mt3 holds no checkpoint-"):
            mt3train.load_model(path)
