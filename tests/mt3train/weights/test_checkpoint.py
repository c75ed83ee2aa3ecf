"""Checkpoints come back as they were, and damaged or foreign files say so in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from special import SPECIAL_FILES, make_special

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.data.recordings import require_recordings
from mt3train.model import MT3, ModelConfig
from mt3train.training.optimizers import make_optimizer
from mt3train.weights.checkpoint import (
    CheckpointInfo,
    checkpoints,
    load_model,
    parse_info,
    read_state,
    save,
    save_weights,
    weights_path,
)
from mt3train.weights.convert import convert

TINY = ModelConfig(
    vocab_size=1664, emb_dim=8, num_heads=1, head_dim=8, num_encoder_layers=1,
    num_decoder_layers=1, mlp_dim=8, n_mels=6, dropout_rate=0.0,
)  # fmt: skip
INFO = CheckpointInfo(
    step=12, model=TINY, vocabulary=VocabularyConfig(num_velocity_bins=127), right_context="audio",
    frames=128, max_target_length=300, spectrogram=SpectrogramConfig(n_mels=6),
)  # fmt: skip


def model_and_optimizer(name="adafactor"):
    torch.manual_seed(0)
    model = MT3(TINY)
    optimizer = make_optimizer(model, name, 1e-2)
    model(torch.ones(1, 4, 6), torch.tensor([[3, 4, 1]])).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_model_comes_back_with_what_its_input_and_tokens_mean(tmp_path):
    model, _ = model_and_optimizer()
    save_weights(tmp_path / "a.safetensors", model, INFO)
    loaded, info = load_model(tmp_path / "a.safetensors")
    assert info == INFO
    mel, targets = torch.randn(2, 5, 6), torch.tensor([[7, 8, 1], [9, 1, 0]])
    assert torch.equal(loaded(mel, targets), model.eval()(mel, targets))
    assert not loaded.training


def test_a_folder_means_its_newest_checkpoint_and_other_names_are_no_checkpoints(tmp_path):
    model, optimizer = model_and_optimizer()
    for step in (2, 30, 123_456_789):
        save(tmp_path, model, dataclasses.replace(INFO, step=step), optimizer, {})
    for name in ("checkpoint-99999999-copy", "checkpoint-final", "checkpoint-0000000099"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"mine")
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"checkpoint-{step}.safetensors" for step in ("00000002", "00000030", "123456789")
    ]
    assert load_model(tmp_path)[1].step == 123_456_789


def test_a_copy_under_the_name_of_a_later_step_is_no_checkpoint(tmp_path):
    model, optimizer = model_and_optimizer()
    for step in (2, 4):
        save(tmp_path, model, dataclasses.replace(INFO, step=step), optimizer, {})
    shutil.copy(weights_path(tmp_path, 2), weights_path(tmp_path, 99))
    assert checkpoints(tmp_path) == [weights_path(tmp_path, 2), weights_path(tmp_path, 4)]
    assert load_model(tmp_path)[1].step == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model, _ = model_and_optimizer()
    with torch.no_grad():
        model.decoder.logits_dense.weight[3, 2] = value
    save_weights(tmp_path / "a.safetensors", model, INFO)
    with pytest.raises(UserError, match=r"decoder\.logits_dense\.weight holds NaN or infinity"):
        load_model(tmp_path / "a.safetensors")


def flip(path):
    """One bit of the last array."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def damaged(kind, path, model):
    save_weights(path, model, INFO)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    if kind == "flipped":
        flip(path)
    if kind == "text":
        path.write_text("hello")
    if kind == "foreign":
        save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    if kind == "later schema":
        save_file({"weight": torch.ones(2)}, path, {"mt3kit": json.dumps({"schema": 2})})
    if kind == "other schema":
        save_file({}, path, {"mt3kit": json.dumps({"schema": 1, "step": 3})})
    metadata = {"mt3kit": json.dumps({"schema": 1, **dataclasses.asdict(INFO)})}
    tensors, norm = model.state_dict(), "decoder.decoder_norm.scale"
    if kind == "missing":
        save_file({name: t for name, t in tensors.items() if name != norm}, path, metadata)
    if kind == "extra":
        save_file(tensors | {"decoder.bias": torch.ones(2)}, path, metadata)
    if kind == "whole numbers":
        save_file(tensors | {norm: torch.ones(8, dtype=torch.int32)}, path, metadata)
    if kind == "shape":
        save_file(tensors | {norm: torch.ones(9)}, path, metadata)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", "is not a whole safetensors file"),
        ("text", "is not a whole safetensors file"),
        ("foreign", "is not a checkpoint of mt3train"),
        (
            "flipped",
            "was altered: its content has the checksum .*, not .* as when it was written; copy it",
        ),
        ("other schema", "its metadata describes no model .*'model'.*; copy it again"),
        ("later schema", "metadata of schema 2, this version reads 1"),
        ("missing", r"arrays missing: 1, such as the one for decoder\.decoder_norm\.scale \[8\]"),
        ("extra", r"arrays left over: 1, such as decoder\.bias; MT3 has no such parameter"),
        ("whole numbers", r"decoder_norm\.scale holds torch\.int32; expected floating point"),
        ("shape", r"decoder\.decoder_norm\.scale is \[9\] .*; a model of its sizes has \[8\]"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, kind, message):
    model, _ = model_and_optimizer()
    damaged(kind, tmp_path / "a.safetensors", model)
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_a_file_of_before_there_were_checksums_loads_and_bare_safetensors_reads_ours(tmp_path):
    model, _ = model_and_optimizer()
    metadata = {"mt3kit": json.dumps({"schema": 1, **dataclasses.asdict(INFO)})}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata)
    assert load_model(tmp_path / "old.safetensors")[1] == INFO
    save_weights(tmp_path / "new.safetensors", model, INFO)
    tensors = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(tmp_path):
    model, _ = model_and_optimizer()
    path = tmp_path / "a.safetensors"
    save_weights(path, model, INFO)
    whole, wanted, noticed = path.read_bytes(), model.state_dict(), 0
    generator = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little")
    places = [*generator.integers(8, 8 + header, 200), *generator.integers(header, len(whole), 50)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << generator.integers(8)
        path.write_bytes(data)
        try:
            loaded, info = load_model(path)
        except UserError:
            noticed += 1
            continue
        assert info == INFO, whole[place - 9 : place + 9]
        assert all(torch.equal(value, wanted[n]) for n, value in loaded.state_dict().items())
    assert noticed > 200


def metadata_file(path: Path, metadata: object) -> Path:
    """Writes whole weights of TINY with other metadata and without a checksum."""
    save_file(MT3(TINY).state_dict(), path, {"mt3kit": json.dumps(metadata)})
    return path


def valid_metadata() -> dict:
    return {"schema": 1, **dataclasses.asdict(INFO)}


@pytest.mark.parametrize(
    "field, value, fact",
    [
        ("model.num_encoder_layers", 10**7, "model.num_encoder_layers is 10000000; expected"),
        ("model.num_encoder_layers", -1, "model.num_encoder_layers is -1"),
        ("model.emb_dim", "8", "model.emb_dim is '8'; expected a whole number"),
        ("model.dropout_rate", float("nan"), "NaN is no number"),
        ("model", None, "model is None"),
        (
            "model.n_mels",
            7,
            r"model.n_mels and model.vocab_size are \(7, 1664\); expected \(6, 1664\)",
        ),
        ("vocabulary.num_velocity_bins", 1, r"are \(6, 1664\); expected \(6, 1536\)"),
        ("model.width", 8, "unexpected keyword argument 'width'"),
        ("spectrogram.hop", 0, "spectrogram.hop is 0"),
        ("spectrogram.fmax", 1e400, "Infinity is no number"),
        ("vocabulary.num_velocity_bins", 1000, "num_velocity_bins is 1000"),
        ("vocabulary.encoding", "evil", "vocabulary.encoding is 'evil'; expected ties or"),
        ("right_context", "evil", "right_context is 'evil'; expected zeros or audio"),
        ("right_context", None, "'right_context' is missing"),
        ("frames", 0, "frames is 0; expected a whole number from 1 to 2048"),
        ("max_target_length", 10**18, "max_target_length is 1000000000000000000"),
        ("step", True, "step is True"),
        ("schema", [1], r"schema is list"),
    ],
)
def test_metadata_out_of_range_is_refused_with_the_field(tmp_path, field, value, fact):
    metadata = valid_metadata()
    *sections, name = field.split(".")
    (metadata[sections[0]] if sections else metadata)[name] = value
    with pytest.raises(UserError, match=fact) as caught:
        load_model(metadata_file(tmp_path / "a.safetensors", metadata))
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)


def test_metadata_nested_100000_levels_deep_is_refused(tmp_path):
    text = "[" * 100_000 + "]" * 100_000
    save_file(MT3(TINY).state_dict(), tmp_path / "a.safetensors", {"mt3kit": text})
    with pytest.raises(UserError, match="nested too deeply"):
        load_model(tmp_path / "a.safetensors")


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 1e308, "zeros", "evil"]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.none(), max_size=3),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_metadata_give_a_description_in_range_or_one_line(data):
    metadata = valid_metadata()
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from([metadata, *filter(is_dict, metadata.values())]))
        name = data.draw(st.sampled_from([*part, "edge", "other"]))
        if data.draw(st.booleans()):
            part[name] = data.draw(ANYTHING)
        else:
            part.pop(name, None)
    try:
        info = parse_info(metadata, Path("a.safetensors"))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return
    assert 0 < info.frames <= 2048 and 0 < info.spectrogram.hop < 1e6
    assert info.right_context in ("zeros", "audio")
    assert 0 < info.model.num_encoder_layers <= 200 and 0 <= info.model.dropout_rate < 1


def is_dict(value: object) -> bool:
    return isinstance(value, dict)


def test_a_place_without_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="b.safetensors: no such file; expected"):
        load_model(tmp_path / "b.safetensors")
    torch.save({}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="c.pth is no .safetensors file; `mt3train convert` makes"):
        load_model(tmp_path / "c.pth")


@needs.posix
@pytest.mark.parametrize(("name", "seen"), SPECIAL_FILES.items())
def test_what_is_no_file_is_named_where_a_checkpoint_is_expected(tmp_path, name, seen):
    path = make_special(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: {seen}; expected a .safetensors file"):
        load_model(path)
    with pytest.raises(UserError, match=f"{name}: {seen}; expected a T5X"):
        convert(path, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=f"{name}: {seen}; expected a folder with audio and MIDI"):
        require_recordings(path)
    (tmp_path / "t5x").mkdir()
    if path.exists():
        (tmp_path / "t5x" / "checkpoint").symlink_to(path)
        with pytest.raises(UserError, match=f"t5x/checkpoint: {seen}; expected the file of a T5X"):
            convert(tmp_path / "t5x", tmp_path / "out.safetensors")


def test_weights_without_their_optimiser_cannot_go_on(tmp_path):
    model, _ = model_and_optimizer()
    save_weights(tmp_path / "a.safetensors", model, INFO)
    with pytest.raises(UserError, match="a.optimizer.safetensors is missing"):
        read_state(tmp_path / "a.safetensors")


@needs.posix
def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_earlier_ones_alone(
    tmp_path, monkeypatch
):
    model, optimizer = model_and_optimizer()
    first = save(tmp_path, model, INFO, optimizer, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    later = weights_path(tmp_path, 13)
    monkeypatch.setattr("mt3data.files.temp_path", lambda path: Path(f"{path}.tmp-0"))
    (tmp_path / f"{later.name}.tmp-0").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"00000013.safetensors: cannot be written \(No space left"):
        save(tmp_path, model, dataclasses.replace(INFO, step=13), optimizer, {})
    assert checkpoints(tmp_path) == [first]
    (tmp_path / "checkpoint-00000013.optimizer.safetensors").unlink()  # counts without weights
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
