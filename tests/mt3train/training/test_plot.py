"""The picture of runs: what is drawn, and what is refused."""

import json

import pytest
from click.testing import CliRunner

from mt3data.errors import UserError
from mt3train.cli.main import main
from mt3train.training.plots import plot


def a_run(folder, *lines, last=""):
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + last)
    return folder


TRAINED = {"step": 2, "loss": 3.0, "accuracy": 0.1, "gradient_norm": None, "lr": 1e-3}
LATER = {"step": 4, "loss": 2.0, "accuracy": 0.2, "gradient_norm": 0.5, "lr": 1e-3}


def drawn(monkeypatch, runs, out):
    """(panel, steps, values) of every curve of a picture."""
    from matplotlib.figure import Figure

    pictures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (pictures.append(self), save(self, *a, **k))
    )
    plot(runs, out)
    return [
        (axes.get_title(loc="left"), list(line.get_xdata()), list(line.get_ydata()))
        for axes in pictures[0].axes
        for line in axes.get_lines()
    ]


def test_every_run_has_its_curves_and_a_missing_number_is_no_point(tmp_path, monkeypatch):
    one = a_run(tmp_path / "one", TRAINED, LATER, {"step": 4, "eval_loss": 2.5})
    two = a_run(tmp_path / "two", {**TRAINED, "loss": 4.0}, last='{"step": 4, "lo')
    curves = drawn(monkeypatch, [one, two], tmp_path / "curves.png")
    assert [c for c in curves if c[0] == "loss per token"] == [
        ("loss per token", [2, 4], [3.0, 2.0]),
        ("loss per token", [4], [2.5]),
        ("loss per token", [2], [4.0]),
    ]
    assert [c for c in curves if c[0] == "gradient norm"] == [("gradient norm", [4], [0.5])]
    assert not [c for c in curves if c[0] == "F1 of notes"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_says_what_it_drew(tmp_path):
    run = a_run(tmp_path / "run", TRAINED, LATER)
    done = CliRunner().invoke(main, ["plot", str(run), "--out", str(tmp_path / "new" / "c.svg")])
    assert done.exit_code == 0
    assert done.stderr == f"{run}: 2 lines, to step 4\n" and done.stdout.endswith("c.svg\n")


def test_a_folder_without_metrics_and_an_unknown_ending_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no metrics.jsonl with a line in it"):
        plot([tmp_path], tmp_path / "c.png")
    run = a_run(tmp_path / "run", TRAINED)
    with pytest.raises(UserError, match="c.mid: expected a name that ends in .png, .svg or .pdf"):
        plot([run], tmp_path / "c.mid")


def test_the_command_replaces_only_its_own_pictures(tmp_path):
    run, out = a_run(tmp_path / "run", TRAINED, LATER), tmp_path / "c.png"
    out.write_bytes(b"a photograph")
    words = ["plot", str(run), "--out", str(out)]
    refused = CliRunner().invoke(main, words)
    assert (refused.exit_code, out.read_bytes()) == (2, b"a photograph")
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
    assert CliRunner().invoke(main, words).exit_code == 0  # its own


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_of_each_kind_is_known_as_its_own(ending, tmp_path):
    run, out = a_run(tmp_path / "run", TRAINED, LATER), tmp_path / f"c.{ending}"
    for _ in range(2):
        plot([run], out)
    assert out.stat().st_size > 1000
