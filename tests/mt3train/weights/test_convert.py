"""mt3train.weights.convert: weights of others made ours, and what is refused."""

import gzip
import json
import os
import pickle
import re
from pathlib import Path

import golden_convert
import golden_network
import needs
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from foreign import SMALL, arrays_of, pth_state, randomised_model, write_t5x, write_zarr

from mt3data.errors import UserError
from mt3train.cli.main import main
from mt3train.model import MT3
from mt3train.weights.checkpoint import (
    CheckpointInfo,
    checksum,
    load_model,
    save_weights,
    weights_path,
)
from mt3train.weights.convert import convert, from_t5x, infer

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden"


@pytest.fixture(scope="module")
def randomised() -> MT3:
    return randomised_model()


def same_weights(file: Path, model: MT3) -> bool:
    loaded, _ = load_model(file)
    wanted = model.state_dict()
    return all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())


def test_a_t5x_checkpoint_becomes_the_same_weights_and_says_what_they_mean(tmp_path, randomised):
    source = write_t5x(tmp_path / "run" / "checkpoint_7", arrays_of(randomised))
    done = convert(source.parent, tmp_path / "mt3.safetensors", num_heads=2)  # the folder above
    assert same_weights(tmp_path / "mt3.safetensors", randomised)
    assert done.family == "mt3" and done.info.model == SMALL
    assert (done.info.step, done.info.frames, done.info.right_context) == (7, 256, "zeros")
    assert done.n_parameters == sum(p.numel() for p in randomised.parameters())
    assert load_model(tmp_path / "mt3.safetensors")[1] == done.info


def test_a_pth_file_becomes_the_same_weights_and_the_same_checksum(tmp_path, randomised):
    torch.save(pth_state(randomised), tmp_path / "mt3.pth")
    done = convert(tmp_path / "mt3.pth", tmp_path / "out.safetensors", num_heads=2)
    assert same_weights(tmp_path / "out.safetensors", randomised)
    source = write_t5x(tmp_path / "t5x", arrays_of(randomised))
    assert done.sha256 == convert(source, tmp_path / "2.safetensors", 2).sha256
    with torch.no_grad():
        changed = {name: p.clone() for name, p in randomised.named_parameters()}
        changed["decoder.decoder_norm.scale"][3] += 1e-6
    assert checksum(changed) != done.sha256


@pytest.mark.parametrize("family", ["mt3", "ismir2021"])
def test_the_published_models_are_known_by_their_names_and_shapes(family):
    golden = json.loads((GOLDEN / "full_size_params.json").read_text())[family]
    arrays = {
        name: np.broadcast_to(np.float32(0), facts["shape"])
        for name, facts in golden["params"].items()
    }
    tensors, _ = from_t5x(arrays)
    found, info = infer(Path("released"), tensors)
    vocabulary = info.vocabulary
    assert found == family
    assert {key: getattr(info.model, key) for key in golden["config"]} == golden["config"]
    assert sum(tensor.numel() for tensor in tensors.values()) == golden["num_params"]
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in MT3(info.model).named_parameters()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
    expected = {"mt3": (1, "ties", "full", 256), "ismir2021": (127, "noties", "flat", 512)}
    assert expected[family] == (
        vocabulary.num_velocity_bins, vocabulary.encoding, vocabulary.granularity, info.frames
    )  # fmt: skip


@pytest.mark.parametrize("transposed", [False, True])
def test_the_logits_check_catches_one_transposed_kernel(tmp_path, transposed):
    """The kernel is square, so that no shape tells."""
    arrays = {
        name.removeprefix("target/"): a for name, a in np.load(GOLDEN / "net_params.npz").items()
    }
    name = "decoder/layers_1/self_attention/key/kernel"
    assert arrays[name].shape == (64, 64)
    if transposed:
        arrays[name] = np.ascontiguousarray(arrays[name].T)
    out = tmp_path / "net.safetensors"
    convert(write_t5x(tmp_path / "net", arrays), out, golden_convert.heads(GOLDEN))
    io, model = np.load(GOLDEN / "net_io.npz"), load_model(out)[0]
    mel, targets = (
        torch.from_numpy(io[f"{k}_tokens"]) for k in ("encoder_input", "decoder_target")
    )
    with torch.no_grad():
        logits = model(mel, targets.long(), original_mask=True).numpy()
    worst = np.abs(logits - io["logits"]).max()
    assert worst > 0.1 if transposed else worst < golden_network.LOGITS


KERNEL = "decoder/layers_1/mlp/wo/kernel"


def broken_arrays(how: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    extra = np.zeros(3, np.float32)
    return {
        "missing": {name: a for name, a in arrays.items() if name != KERNEL},
        "extra": arrays | {"decoder/relative_bias": extra},
        "shape": arrays | {KERNEL: arrays[KERNEL][:-1]},
        "transposed": arrays | {KERNEL: np.ascontiguousarray(arrays[KERNEL].T)},
        "vocabulary": arrays | {"decoder/token_embedder/embedding": np.zeros((40, 16), np.float32)},
        "frames": arrays
        | {"encoder/continuous_inputs_projection/kernel": np.zeros((229, 16), np.float32)},
    }[how]


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", r"arrays missing: 1, such as the one for decoder\.layers\.1\.mlp\.wo"),
        ("extra", "arrays left over: 1, such as decoder/relative_bias"),
        ("shape", r"decoder/layers_1/mlp/wo/kernel is \[16, 11\] .* has \[16, 12\]"),
        ("transposed", r"decoder/layers_1/mlp/wo/kernel is \[12, 16\]"),
        ("vocabulary", r"a vocabulary of 40 words; expected 1536 \(mt3\) or 1664 \(ismir2021\)"),
        ("frames", r"\(229, 1536\); expected \(512, 1536\)"),
    ],
)
def test_a_checkpoint_that_is_not_exactly_mt3_is_refused_by_name(
    tmp_path, randomised, how, message
):
    source = write_t5x(tmp_path / "c", broken_arrays(how, arrays_of(randomised)))
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "out.safetensors", 2)
    assert not (tmp_path / "out.safetensors").exists()


def test_heads_that_are_not_known_or_do_not_divide_the_columns_are_refused(tmp_path, randomised):
    source = write_t5x(tmp_path / "c", arrays_of(randomised))
    with pytest.raises(UserError, match="attention has 8 columns, .* 384 in 6 heads.* say --heads"):
        convert(source, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="8 columns of attention are not 3 equal heads"):
        convert(source, tmp_path / "out.safetensors", 3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def padded(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0\0\0\0"))


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("{a}/0.0", Path.unlink, r"0\.0: no such file"),
        ("{a}/0.0", cut, "768 bytes and no end in a chunk of 768"),
        ("{a}/0.0", flip, "damaged|and no end"),
        ("{a}/0.0", padded, "769 bytes and no end in a chunk of 768"),
        ("{a}/.zarray", cut, "not the description of a zarr array"),
        ("{a}/.zarray", Path.unlink, "not the description of a zarr array"),
        ("checkpoint", cut, "not the msgpack tree"),
        ("checkpoint", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not the msgpack"),
        ("checkpoint", Path.unlink, "has no file `checkpoint`"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_file(tmp_path, randomised, file, change, message):
    source = write_t5x(tmp_path / "c", arrays_of(randomised))
    change(source / file.format(a="target." + KERNEL.replace("/", ".")))
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "out.safetensors", 2)


def test_a_folder_that_the_tree_does_not_name_is_left_over(tmp_path, randomised):
    source = write_t5x(tmp_path / "c", arrays_of(randomised))
    write_zarr(source / "target.decoder.other", np.zeros(2, np.float32), (2,))
    with pytest.raises(UserError, match=r"target\.decoder\.other is left over"):
        convert(source, tmp_path / "out.safetensors", 2)


class Trap:
    """Pickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickled_payload_is_refused_and_not_run(tmp_path, randomised):
    state = pth_state(randomised) | {"surprise": Trap(tmp_path / "sprung")}
    torch.save(state, tmp_path / "mt3.pth")
    with pytest.raises(UserError, match="is refused: it refers to"):
        convert(tmp_path / "mt3.pth", tmp_path / "out.safetensors", 2)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match="refused|no whole file"):
        convert(tmp_path / "plain.pth", tmp_path / "out.safetensors", 2)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lm_head.weight": None}, "arrays missing: 1, such as the one for decoder.logits"),
        ({"shared.weight": torch.zeros(3)}, r"left over: 1, such as shared\.weight"),
        ({"encoder.embed_tokens.weight": torch.zeros(16, 512)}, "and proj.weight differ"),
        ({"lm_head.weight": torch.zeros(1536, 15)}, r"lm_head\.weight is \[1536, 15\]"),
        ({"lm_head.weight": torch.zeros(3, dtype=torch.int64)}, "no array of floating-point"),
        ({"epoch": 3}, "epoch is no array"),
    ],
)
def test_a_state_dict_that_is_not_exactly_mt3_is_refused_by_name(
    tmp_path, randomised, change, message
):
    state = pth_state(randomised) | change
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "mt3.pth")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "mt3.pth", tmp_path / "out.safetensors", 2)


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"no such thing")])
def test_a_damaged_pth_file_is_refused(tmp_path, randomised, damage):
    torch.save(pth_state(randomised), tmp_path / "mt3.pth")
    damage(tmp_path / "mt3.pth")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "mt3.pth"))):
        convert(tmp_path / "mt3.pth", tmp_path / "out.safetensors", 2)


@pytest.fixture
def run_folder(tmp_path, randomised) -> Path:
    """A run with one checkpoint, of step 5."""
    file = weights_path(tmp_path / "run", 5)
    file.parent.mkdir()
    save_weights(
        file, randomised, CheckpointInfo(step=5, model=SMALL, right_context="audio", frames=128)
    )
    return file.parent


def test_half_precision_takes_half_the_bytes_and_keeps_what_the_run_said(tmp_path, run_folder):
    out = tmp_path / "half.safetensors"
    done = convert(run_folder, out, half=True)
    (file,) = run_folder.iterdir()
    assert done.family == "mt3train" and done.info == load_model(file)[1]
    # Twice as many bytes with float32, but for the header that names arrays.
    assert 2 * out.stat().st_size - file.stat().st_size < 0.2 * file.stat().st_size
    (original, _), (rounded, info) = load_model(file), load_model(out)
    assert info == done.info and done.sha256 == checksum(rounded.state_dict())
    assert done.sha256 != checksum(original.state_dict())
    for name, value in original.state_dict().items():
        held = rounded.state_dict()[name]
        assert held.dtype == torch.float32
        assert torch.equal(held, value.half().float())
        assert (
            (held - value).abs() <= value.abs() / 2048 + 2.0**-25
        ).all()  # 11 bits, or subnormal


def test_a_copy_in_full_precision_has_the_same_weights_and_checksum(tmp_path, run_folder):
    done = convert(run_folder, tmp_path / "copy.safetensors")
    assert done.sha256 == checksum(load_model(run_folder)[0].state_dict())


@pytest.mark.parametrize("value, seen", [(1e5, "100000"), (-70000.0, "70000")])
def test_a_weight_beyond_half_precision_is_refused_by_name(tmp_path, run_folder, value, seen):
    model, info = load_model(run_folder)
    with torch.no_grad():
        model.encoder.encoder_norm.scale[1] = value
    save_weights(tmp_path / "big.safetensors", model, info)
    with pytest.raises(UserError, match=rf"encoder_norm\.scale holds {seen}; half .* 65504"):
        convert(tmp_path / "big.safetensors", tmp_path / "out.safetensors", half=True)
    assert not (tmp_path / "out.safetensors").exists()


def test_heads_of_a_checkpoint_of_ours_are_known(tmp_path, run_folder):
    with pytest.raises(UserError, match="states its number of heads; leave out --heads"):
        convert(run_folder, tmp_path / "out.safetensors", num_heads=2)


def test_the_command_prints_count_and_checksum_and_mistakes_take_one_line(tmp_path, randomised):
    source = write_t5x(tmp_path / "c", arrays_of(randomised))

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["convert", *map(str, words)])

    done = run(source, "-o", tmp_path / "a.safetensors", "--heads", 2)
    assert done.exit_code == 0, done.stderr
    count = sum(p.numel() for p in randomised.parameters())
    size = (tmp_path / "a.safetensors").stat().st_size
    assert re.search(
        rf"mt3, {count:,} parameters, {size:,} bytes, step 7, sha256 .* [0-9a-f]{{64}}$",
        done.stdout,
    )
    wrong = run(tmp_path / "nowhere.pth", "-o", tmp_path / "b.safetensors")
    assert wrong.exit_code == 2
    assert wrong.stderr.count("\n") == 1 and "no such file" in wrong.stderr


@needs.posix
def test_a_file_of_another_origin_is_kept_and_a_link_stays_a_link(tmp_path, randomised):
    source = write_t5x(tmp_path / "t5x", arrays_of(randomised))
    out = tmp_path / "out.safetensors"
    out.symlink_to("store.safetensors")
    for _ in range(2):  # the second time over its own file
        convert(source, out, 2)
    assert out.is_symlink() and same_weights(tmp_path / "store.safetensors", randomised)
    save_weights(tmp_path / "trained.safetensors", randomised, load_model(out)[1])
    with pytest.raises(UserError, match="not written by `mt3train convert`"):
        convert(source, tmp_path / "trained.safetensors", 2)
    convert(source, tmp_path / "trained.safetensors", 2, force=True)


@needs.posix
@pytest.mark.parametrize("out", ["-", "/dev/null"])
def test_weights_need_a_regular_file(out, tmp_path, randomised):
    source = write_t5x(tmp_path / "t5x", arrays_of(randomised))
    with pytest.raises(UserError, match="regular file"):
        convert(source, out, 2, force=True)
    assert Path("/dev/null").is_char_device()


def test_weights_need_the_ending_by_which_they_are_read(tmp_path, randomised):
    source = write_t5x(tmp_path / "t5x", arrays_of(randomised))
    with pytest.raises(UserError, match=r"a name that ends in \.safetensors"):
        convert(source, tmp_path / "mt3.pth", 2)
    assert not (tmp_path / "mt3.pth").exists()


@needs.posix
@pytest.mark.parametrize("kind", ["empty", "expanded", "layer 10,000,000", "pipe", "list", "text"])
def test_a_hostile_pth_file_is_refused_in_one_line(tmp_path, randomised, kind):
    path = tmp_path / "a.pth"
    state = pth_state(randomised)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("weights")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "expanded":  # 4 bytes in the file, 4 TB in memory
        torch.save(state | {"proj.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    else:
        name = "encoder.block.10000000.layer.0.layer_norm.weight"
        torch.save(state | {name: torch.ones(64)}, path)
    with pytest.raises(UserError) as caught:
        convert(path, tmp_path / "a.safetensors", num_heads=2)
    assert "\n" not in str(caught.value) and "a.pth" in str(caught.value)
