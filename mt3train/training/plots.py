"""Draws the curves of training runs from their metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3data.errors import UserError
from mt3data.files import inputs_of, require_output
from mt3data.report.plots import save_figure
from mt3train.training.logger import read_metrics

COMMAND = "mt3train plot"
# Heading of each panel, scale of its axis, and its curves. Curves of evaluation are dashed.
PANELS = (
    ("loss per token", "log", ("loss", "eval_loss")),
    ("accuracy per token", "linear", ("accuracy", "eval_accuracy")),
    ("F1 of notes", "linear", ("onset_f1", "onset_offset_f1", "program_f1", "drum_f1")),
    ("gradient norm", "log", ("gradient_norm",)),
    ("learning rate", "linear", ("lr",)),
    ("segments per second", "linear", ("segments_per_second",)),
    ("share of the time spent waiting for data", "linear", ("data_wait",)),
)
STYLES: dict[str, Any] = {"loss": "-", "accuracy": "-", "eval_loss": "--", "eval_accuracy": "--", "onset_f1": ":",
          "onset_offset_f1": "-.", "program_f1": "-", "drum_f1": "--"}  # fmt: skip


def plot(runs: Sequence[Path], out: Path, force: bool = False) -> list[str]:
    """Draws the curves of runs into one picture, a colour for each run.

    Args:
        runs: their folders.
        out: a .png, .svg or .pdf file, or `files.STDOUT`.
        force: replace a file of any origin.
    Returns:
        What was drawn, a line for each run.
    Raises:
        UserError: a folder without metrics, or an output that may not be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    out.parent.mkdir(parents=True, exist_ok=True)
    require_output(out, COMMAND, force, inputs=inputs_of(runs))
    lines_of = {run: _lines(run) for run in runs}
    panels = [panel for panel in PANELS if any(_curve(lines, key)[0] for key in panel[2]
                                               for lines in lines_of.values())]  # fmt: skip
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, (heading, scale, keys) in zip(grid, panels, strict=False):
        _draw(axes, lines_of, keys)
        axes.set_title(heading, fontsize=10, loc="left")
        axes.set_yscale(scale)
        if scale == "log":  # 7.5, not 7.5 x 10^0
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.grid(alpha=0.3, which="both")
        axes.set_xlabel("step")
    for axes in grid[len(panels) :]:
        axes.axis("off")
    handles = [_handle(number, str(run)) for number, run in enumerate(runs)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(runs)))
    save_figure(figure, out, COMMAND, force)
    return [f"{run}: {len(lines)} lines, to step {lines[-1]['step']}"
            for run, lines in lines_of.items()]  # fmt: skip


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run / "metrics.jsonl")
    if not lines:
        raise UserError(
            f"{run} holds no metrics.jsonl with a line in it; expected the folder of a run that got"
            " as far as its first log_every steps"
        )
    return lines


def _curve(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw(axes: Any, lines_of: dict[Path, list[dict[str, Any]]], keys: Sequence[str]) -> None:
    drawn = set()
    for number, lines in enumerate(lines_of.values()):
        for key in keys:
            steps, values = _curve(lines, key)
            if steps:
                drawn.add(key)
                axes.plot(steps, values, STYLES.get(key, "-"), color=f"C{number}", linewidth=1.3,
                          marker="." if len(steps) < 30 else None)  # fmt: skip
    if len(drawn) > 1:
        from matplotlib.lines import Line2D

        named = [key for key in keys if key in drawn]
        axes.legend(
            handles=[Line2D([], [], color="grey", linestyle=STYLES[key]) for key in named],
            labels=named, fontsize=8,
        )  # fmt: skip


def _handle(number: int, name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=f"C{number}", label=name)
