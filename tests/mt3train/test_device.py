"""The words for devices and precisions, as commands, configurations and Python take them."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from recordings import record, save_model

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train import Transcriber, load_config
from mt3train.cli.main import main
from mt3train.device import DEVICES, PRECISIONS, choose_device, choose_precision, compile_layers
from mt3train.model import MT3, ModelConfig
from mt3train.training.loss import loss_sum
from mt3train.transcription.decode import SegmentDecoder

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


def test_auto_is_cuda_where_there_is_one_and_never_mps(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == CPU and choose_device("mps") == MPS
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("auto") == CUDA and choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="device cuda:2: PyTorch finds none"):
        choose_device("cuda:2")


@pytest.mark.parametrize("word", ["cuda", "mps", "cuda:0", "meta", "gpu", ""])
def test_a_device_that_is_not_there_is_one_line(monkeypatch, word):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds none|expected one of auto, cpu, cuda, mps"):
        choose_device(word)


@pytest.mark.parametrize(
    "device, has_bf16, training, decoding",
    [
        (CPU, True, "bf16", "float32"), (CPU, False, "float32", "float32"),
        (CUDA, True, "bf16", "bf16"), (CUDA, False, "fp16", "float32"),
        (MPS, False, "float32", "float32"),
    ],
)  # fmt: skip
def test_auto_is_the_precision_that_is_fast_and_exact_enough(
    monkeypatch, device, has_bf16, training, decoding
):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_precision("auto", device, training=True) == training
    assert choose_precision("auto", device) == decoding


def test_fp16_on_a_cpu_is_refused_and_other_words_are_kept():
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)
    for word in ("float64", "bf16"):
        assert choose_precision(word, CPU, training=True) == word
    assert choose_precision("fp16", CUDA) == "fp16"


def test_every_command_that_runs_a_model_takes_the_same_words():
    assert isinstance(main, click.Group)
    options = {
        (name, option.name): getattr(option.type, "choices", None)
        for name in ("transcribe", "evaluate", "demo") for option in main.commands[name].params
    }  # fmt: skip
    for name in ("transcribe", "evaluate", "demo"):
        assert options[name, "device"] == DEVICES
    for name in ("transcribe", "evaluate"):
        assert options[name, "precision"] == PRECISIONS
    for word in DEVICES:
        assert load_config([f"device={word}"]).device == word
    for word in (*PRECISIONS, "float64"):
        assert load_config([f"precision={word}"]).precision == word
    with pytest.raises(UserError, match="device='gpu'; expected one of auto, cpu"):
        load_config(["device=gpu"])


def test_the_options_reach_the_decoder(tmp_path, monkeypatch):
    seen: list[SimpleNamespace] = []
    decode = SegmentDecoder.decode

    def watch(self: SegmentDecoder, mels):
        seen.append(SimpleNamespace(device=self.device.type, half=self.half))
        return decode(self, mels)

    monkeypatch.setattr(SegmentDecoder, "decode", watch)
    model = save_model(tmp_path / "a.safetensors", VocabularyConfig())
    song, out = record(tmp_path / "song.wav"), str(tmp_path / "a.mid")
    words = ["transcribe", str(song), "--checkpoint", str(model), "-o", out]
    for more in ([], ["--precision", "bf16", "--device", "cpu"]):
        assert CliRunner().invoke(main, words + more).exit_code == 0
    Transcriber.from_pretrained(model, device="cpu", precision="bf16")(song)
    assert [each.half for each in seen] == [None, torch.bfloat16, torch.bfloat16]
    assert {each.device for each in seen[1:]} == {"cpu"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(main, [*words, "--device", "cuda"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "device cuda" in done.stderr
    done = CliRunner().invoke(main, [*words, "--precision", "fp16", "--device", "cpu"])
    assert done.exit_code == 2 and "needs a GPU" in done.stderr


def test_without_a_compiler_layers_stay_as_they_are_and_a_message_names_it(tmp_path):
    """In a process of its own, because torch looks for a compiler once."""
    script = """if True:
        import torch
        from mt3train.device import compile_layers
        layers = [torch.nn.Linear(2, 2)]
        (message,) = compile_layers(layers, torch.device("cpu"))
        assert layers[0]._compiled_call_impl is None
        print(message)
    """
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | caches, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "nothing is compiled" in done.stdout and "no-such-compiler" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_compiled_layers_give_the_same_loss_and_gradients():
    torch.manual_seed(0)
    size = {
        "emb_dim": 16,
        "num_heads": 2,
        "head_dim": 8,
        "mlp_dim": 24,
        "n_mels": 12,
        "vocab_size": 20,
    }
    model = MT3(ModelConfig(**size, num_encoder_layers=1, num_decoder_layers=2, dropout_rate=0.0))

    def losses_and_gradients():
        model.zero_grad()
        torch.manual_seed(1)
        losses = []
        for n_segments, n_frames, length in ((3, 8, 5), (2, 8, 7), (4, 6, 9)):
            targets = torch.randint(1, 20, (n_segments, length))
            losses.append(loss_sum(model(torch.randn(n_segments, n_frames, 12), targets), targets))
            losses[-1].backward()
        return [*losses, *(p.grad for p in model.parameters())]

    plain = losses_and_gradients()
    assert compile_layers([*model.encoder.layers, *model.decoder.layers], CPU) == []
    for ours, theirs in zip(losses_and_gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no glibc")
def test_memory_that_was_kept_is_used_again_without_page_faults():
    """200 MB in blocks, which glibc returns to the system by default, in a process of their own."""
    program = """
import resource, numpy as np
from mt3train.device import keep_freed_memory
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3): [np.full(20_000_000, 1, np.uint8) for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
freed = count()
keep_freed_memory()
count()
print(freed, count())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    freed, kept = map(int, done.stdout.split())
    assert kept < freed / 4
