"""Compares network, loss, decoding and optimiser with what the original computed (net_*.npz, ...).

Each check takes a folder laid out like tests/golden and returns (values compared, worst error as a
share of what is tolerated). Sizes of the network are read from net_io.npz.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from foreign import load_t5x, t5x_parameters
from torch import Tensor, nn

from mt3data.music.vocabulary import VocabularyConfig
from mt3train.model import MT3, ModelConfig, attention_masks, shift_right, sinusoids
from mt3train.training.loss import loss_sum, token_losses
from mt3train.training.optimizers import Adafactor
from mt3train.transcription.cached_decoder import CachedDecoder
from mt3train.transcription.decode import DecodingConfig, SegmentDecoder

LOGITS = 1e-4  # absolute, at |logits| <= 13
LOSS = 1e-5  # absolute, per token, at losses <= 15
GRADIENTS = 1e-4  # of the tensor's largest
WEIGHTS = 2e-6  # absolute, per step
LEARNING_RATE = 1e-3
LEFT_OUT = {"net_io.npz": "scores of beams and the tokens of 4 beams: decoding is greedy"}


def load_model(folder: Path) -> tuple[MT3, Mapping[str, np.ndarray]]:
    """The original's small network in evaluation mode, and net_io.npz."""
    io = np.load(folder / "net_io.npz")
    config = json.loads(str(io["config"]))
    sizes = {key: config[key] for key in config.keys() & ModelConfig.__dataclass_fields__.keys()}
    model = MT3(ModelConfig(**sizes)).eval()
    load_t5x(model, np.load(folder / "net_params.npz"))
    return model, io


def check_network(folder: Path) -> tuple[int, float]:
    """net_io.npz: submodules, encoded frames, logits, loss, greedy decoding, cached steps (see LEFT_OUT)."""
    model, io = load_model(folder)
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        key = "act/" + name.replace("layers.", "layers_").replace(".", "/")
        if key in io:
            module.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: out}))
    mel = torch.from_numpy(io["encoder_input_tokens"])
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    with torch.no_grad():
        seen["encoded"] = model.encode(mel)
        seen["logits"] = model(mel, targets, original_mask=True)
    modules = [key for key in io if key.startswith("act/") and "FixedEmbed" not in key]
    assert sorted(seen) == sorted([*modules, "encoded", "logits"])
    errors = {key: _share(out.numpy(), io[key], LOGITS) for key, out in seen.items()}
    for smoothing in (0.0, 0.1):
        errors |= _loss_errors(io, targets, smoothing)
    model, io = load_model(folder)  # without hooks
    real = io["decoder_target_tokens"] > 0
    with torch.no_grad():
        causal = model(mel, targets).numpy()
    errors["logits, causal mask alone"] = _share(causal[real], io["logits"][real], LOGITS)
    errors |= _decoding_errors(model, io)
    return _worst(errors)


def _loss_errors(
    io: Mapping[str, np.ndarray], targets: Tensor, smoothing: float
) -> dict[str, float]:
    """Loss and z-loss of every token, and their sums, from the original's logits."""
    logits, prefix = torch.from_numpy(io["logits"]), f"loss_ls{smoothing}/"
    ours = token_losses(logits, targets, label_smoothing=smoothing)
    without = token_losses(logits, targets, z_loss=0.0, label_smoothing=smoothing)
    weights = io["decoder_loss_weights"]
    per_token = (io[prefix + "per_token_raw"] - io[prefix + "normalizing_constant"]) * weights
    per_token_z = io[prefix + "per_token_zloss"] * weights
    errors = {
        "per token": _share(ours.numpy(), per_token, LOSS),
        "z per token": _share((ours - without).numpy(), per_token_z, LOSS),
        "z sum": _share((ours - without).sum().item(), float(io[prefix + "sum_zloss"]), LOSS),
    }
    for name in ("sum_loss", "model_loss"):  # the model's has no normalising factor
        expected = float(io[prefix + name])
        total = loss_sum(logits, targets, label_smoothing=smoothing).item()
        errors[name] = _share(total, expected, 1e-6 * expected)
    return {f"loss with smoothing {smoothing}, {name}": e for name, e in errors.items()}


def _decoding_errors(model: MT3, io: Mapping[str, np.ndarray]) -> dict[str, float]:
    inputs = [io["decode/encoder_input_tokens_fit"], io["encoder_input_tokens"]]
    mel, length = np.concatenate(inputs), io["decode/greedy_tokens"].shape[1]
    # Fewer slots than segments, so that some begin where others have ended.
    decoder = SegmentDecoder(
        model, VocabularyConfig(), DecodingConfig(batch=3), n_frames=mel.shape[1], max_length=length
    )
    decoded = list(decoder.decode(mel))
    assert len(decoded) == len(mel)
    for segment in decoded:
        ours = np.pad(segment.tokens, (0, length - len(segment.tokens)))
        for name in ("greedy", "beam1"):  # a beam search with one beam finds the greedy tokens
            expected = io[f"decode/{name}_tokens"][segment.index].reshape(length)
            np.testing.assert_array_equal(ours, expected, err_msg=f"{name} tokens")
    tokens = torch.from_numpy(io["decode/loop_tokens_no_eos_stop"])
    cached = CachedDecoder(model, len(tokens), tokens.shape[1], mel.shape[1])
    with torch.no_grad():
        for slot, encoded in enumerate(model.encode(torch.from_numpy(mel))):
            cached.load_segment(slot, encoded)
        logits = torch.stack([cached.decode_step(column) for column in shift_right(tokens).T], 1)
    np.testing.assert_array_equal(logits.argmax(-1), tokens, err_msg="tokens step by step")
    first, top2 = io["decode/loop_logits_first4"], io["decode/loop_top2_logits"]
    return {
        "logits step by step": _share(logits[:, : first.shape[1]].numpy(), first, LOGITS),
        "two largest logits": _share(logits.topk(2).values.flip(-1).numpy(), top2, LOGITS),
    }


def check_training(folder: Path) -> tuple[int, float]:
    """net_train.npz: gradients, losses, parameters and their statistics over three updates.

    Where a gradient is nothing but rounding, Adafactor's first steps are sign-like: one value in a
    thousand (or two) may be off by what a step moves.
    """
    model, io = load_model(folder)
    golden = np.load(folder / "net_train.npz")
    optimizer = Adafactor(model.parameters(), lr=LEARNING_RATE)
    mel = torch.from_numpy(io["encoder_input_tokens"])
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    start = {k: p.detach().clone() for k, (p, _) in t5x_parameters(model).items()}
    errors = {}
    for step, expected in enumerate(golden["losses"], start=1):
        optimizer.zero_grad()
        loss = loss_sum(model(mel, targets), targets)
        loss.backward()
        errors[f"loss {step}"] = _share(loss.item(), expected, 1e-5 * expected)
        for name, (parameter, transposed) in t5x_parameters(model).items():
            assert parameter.grad is not None
            key, gradient = f"grad{step}/{name}", parameter.grad.T if transposed else parameter.grad
            if key in golden:
                allowed = GRADIENTS * np.abs(golden[key]).max()
                errors[key] = _share(gradient.numpy(), golden[key], allowed)
        optimizer.step()
        for name, (parameter, transposed) in t5x_parameters(model).items():
            key = f"after{step}/{name}"
            if key in golden:
                ours = (parameter.T if transposed else parameter).detach().numpy()
                shares = np.sort((np.abs(ours - golden[key]) / (WEIGHTS * step)).ravel())
                errors[key] = shares[-1 - max(2, shares.size // 1000)]
                moved = step * LEARNING_RATE * max(1e-3, np.sqrt(np.square(ours).mean()))
                errors[key + ", outliers"] = shares[-1] * WEIGHTS * step / (1.1 * moved)
            stats = golden[f"stats_after{step}/{name}"]
            errors |= _statistics_errors(f"{step} {name}", parameter, start[name], stats, step)
    kept = {
        f"{name}/{key}": list(tensor.shape)
        for name, (parameter, transposed) in t5x_parameters(model).items()
        for key, tensor in optimizer.state[parameter].items()
        if key != "step"
    }
    assert kept.keys() == {
        key for key, shape in json.loads(str(golden["opt_state_shapes"])).items() if shape != [1]
    }
    return _worst(errors)


def _statistics_errors(
    key: str, parameter: Tensor, start: Tensor, expected: np.ndarray, step: int
) -> dict[str, float]:
    """Sum, L2 norm and L2 distance to the start, in float64; see the note on outliers above."""
    now, before = parameter.detach().double(), start.double()
    moved = step * LEARNING_RATE * max(1e-3, float(now.square().mean().sqrt()))
    allowed = (
        WEIGHTS * step * now.numel() ** 0.5 + 2 * moved,
        1e-5 * expected[1],
        1e-3 * expected[2],
    )
    ours = now.sum(), now.norm(), (now - before).norm()
    return {
        f"{name} after {key}": _share(float(value), theirs, tolerance)
        for name, value, theirs, tolerance in zip(
            ("sum", "norm", "distance"), ours, expected, allowed, strict=True
        )
    }


def check_adafactor(folder: Path) -> tuple[int, float]:
    """adafactor.npz: parameters and second moments, factored from 128 on."""
    golden = np.load(folder / "adafactor.npz")
    errors = {}
    for name in (key.removeprefix("param0/") for key in golden.files if key.startswith("param0/")):
        parameter = nn.Parameter(torch.from_numpy(golden[f"param0/{name}"].copy()))
        optimizer = Adafactor([parameter])
        for step, lr in enumerate(golden["learning_rates"], start=1):
            optimizer.param_groups[0]["lr"] = float(lr)
            parameter.grad = torch.from_numpy(golden[f"grad{step}/{name}"].copy())
            optimizer.step()
            if (key := f"param{step}/{name}") in golden:
                errors[key] = _share(parameter.detach().numpy(), golden[key], 5e-7)
        ours = {k: v.numpy().ravel() for k, v in optimizer.state[parameter].items() if k != "step"}
        if "v_row" in ours and parameter.shape[0] > parameter.shape[1]:
            # The original calls the means over the larger side rows, whichever side that is.
            ours = {"v_row": ours["v_col"], "v_col": ours["v_row"]}
        for key in ("v_row", "v_col", "v"):
            expected = golden[f"state3/{name}/{key}"].ravel()
            assert (key in ours) == (expected.shape != (1,)), (
                f"{name}: {key} is kept by one side only"
            )
            if key in ours:
                errors[f"{name} {key}"] = float(
                    (np.abs(ours[key] - expected) / (2e-6 * expected)).max()
                )
    return _worst(errors)


def check_pieces(folder: Path) -> tuple[int, float]:
    """net_pieces.npz: positions, GELU, norm, masks, and the shift and weights of targets."""
    golden = np.load(folder / "net_pieces.npz")
    errors = {}
    for key in golden.files:
        width = key.removeprefix("sinusoid_")
        if width.isdigit():
            table = sinusoids(2048, int(width)).numpy()[golden["sinusoid_rows"]]
            errors[key] = _share(table, golden[key], 1e-6)
        if key.endswith("decoder_target_tokens"):
            targets = torch.from_numpy(golden[key])
            prefix = key.removesuffix("decoder_target_tokens")
            for name, ours in (("input_tokens", shift_right(targets[None])[0]),
                               ("loss_weights", targets > 0)):  # fmt: skip
                np.testing.assert_array_equal(ours, golden[f"{prefix}decoder_{name}"], err_msg=key)
                errors[prefix + name] = 0.0
    gelu = nn.functional.gelu(torch.from_numpy(golden["gelu_x"]), approximate="tanh").numpy()
    errors["gelu"] = _share(gelu, golden["gelu_y"], 1e-6)
    norm = MT3(ModelConfig(8, golden["ln_x"].shape[-1], 1, 8, 1, 1, 8, 8)).encoder.encoder_norm
    with torch.no_grad():
        norm.scale.copy_(torch.from_numpy(golden["ln_scale"]))
        errors["norm"] = _share(
            norm(torch.from_numpy(golden["ln_x"])).numpy(), golden["ln_y"], 3e-6
        )
    masks = attention_masks(
        torch.from_numpy(golden["mask_targets"]), golden["mask_cross"].shape[-1]
    )
    for name, mask in zip(("mask_decoder", "mask_cross"), masks, strict=True):
        np.testing.assert_array_equal(mask == 0, golden[name] > 0, err_msg=name)
        errors[name] = 0.0
    return _worst(errors)


def check_sizes(folder: Path) -> tuple[int, float]:
    """full_size_params.json: names and shapes, initial values, what the optimiser keeps.

    Standard deviations within 2 %; means within 5 standard errors of the original's; the values of
    cut normals end where the original's end.
    """
    errors = {}
    for family, golden in json.loads((folder / "full_size_params.json").read_text()).items():
        with_values = any("init" in info for info in golden["params"].values())
        torch.manual_seed(0)
        with torch.device("cpu" if with_values else "meta"):
            model = MT3(ModelConfig(**golden["config"]))
        ours = {"target/" + k: p.T if t else p for k, (p, t) in t5x_parameters(model).items()}
        expected = golden["params"]
        assert {k: list(p.shape) for k, p in ours.items()} == {
            k: w["shape"] for k, w in expected.items()
        }
        assert sum(p.numel() for p in model.parameters()) == golden["num_params"]
        for name, parameter in ours.items():
            if "init" in expected[name]:
                errors |= _init_errors(
                    f"{family} {name}", parameter.detach(), expected[name]["init"]
                )
        if "opt_state" in golden:
            _assert_state(golden["opt_state"], ours)
    return _worst(errors)


def _init_errors(key: str, ours: Tensor, expected: Mapping[str, float]) -> dict[str, float]:
    if expected["std"] == 0.0:
        return {key: float((ours - expected["mean"]).abs().max())}
    error = expected["std"] * (2 / ours.numel()) ** 0.5  # of the difference of two means
    errors = {
        f"{key} std": abs(float(ours.std()) - expected["std"]) / (0.02 * expected["std"]),
        f"{key} mean": abs(float(ours.mean()) - expected["mean"]) / (5 * error),
    }
    for end, value in (("min", ours.min()), ("max", ours.max())):
        if abs(expected[end]) < 2.5 * expected["std"]:  # cut at two deviations of the whole normal
            errors[f"{key} {end}"] = abs(float(value) - expected[end]) / (
                0.005 * abs(expected[end])
            )
        else:
            errors[f"{key} {end}"] = 0.0 if abs(value) > 3 * expected["std"] else 2.0
    return errors


def _assert_state(golden: Mapping[str, list[int]], ours: Mapping[str, Tensor]) -> None:
    """Our optimiser keeps as many numbers of each kind; rows and columns may change places."""
    parameters = {k: nn.Parameter(p.to("meta").contiguous()) for k, p in ours.items()}
    optimizer = Adafactor(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        state, stem = (
            optimizer.state[parameter],
            "state/param_states/" + name.removeprefix("target/"),
        )
        kept = sorted(value.numel() for key, value in state.items() if key != "step")
        shapes = [golden[f"{stem}/{key}"] for key in ("v", "v_row", "v_col", "m")]
        assert kept == sorted(int(np.prod(s)) for s in shapes if s != [1]), name


def _share(ours: np.ndarray | float, expected: np.ndarray | float, allowed: float) -> float:
    return (
        float(np.abs(np.asarray(ours, np.float64) - expected).max() / allowed) if allowed else 0.0
    )


def _worst(errors: Mapping[str, float]) -> tuple[int, float]:
    name = max(errors, key=errors.__getitem__)
    assert errors[name] <= 1, f"{name}: {errors[name]:.3g} times the allowed error"
    return len(errors), float(errors[name])


CHECKS: dict[str, Callable[[Path], tuple[int, float]]] = {
    "net_io.npz": check_network,
    "net_train.npz": check_training,
    "net_pieces.npz": check_pieces,
    "adafactor.npz": check_adafactor,
    "full_size_params.json": check_sizes,
}
