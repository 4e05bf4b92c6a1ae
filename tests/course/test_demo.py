"""The demonstration: from a picture to a figure, whole or not at all."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from slam_course import demo
from slam_course.lesson_00.figures import plot_demo
from slam_edu import toy

SMALL = demo.DemoConfig(components=60, updates=150, batch=128, width=32, depth=2, points=400)


@pytest.fixture(scope="module")
def small():
    return demo.run(config=SMALL)


def test_rows_are_teacher_at_50_and_2_and_student_at_2(small):
    assert [(row.name, row.evaluations) for row in small.rows] == [
        ("teacher, DDIM", 50),
        ("teacher, DDIM", 2),
        ("student, SLAM", 2),
    ]
    for row in small.rows:
        assert row.samples.shape == (400, 2)
        assert torch.isfinite(row.samples).all()
        assert row.seconds > 0


def test_even_a_short_run_beats_the_teacher_at_two_evaluations(small):
    fifty, two, student = (row.distance for row in small.rows)
    assert small.floor <= fifty < 0.2
    assert student < two


def test_the_same_seed_gives_the_same_student(small):
    again = demo.run(config=SMALL)
    for a, b in zip(small.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)
    assert demo.table(again, times=False) == demo.table(small, times=False)


def test_another_seed_gives_another(small):
    other = demo.run(config=demo.DemoConfig(**{**vars(SMALL), "seed": 1}))
    assert not torch.equal(other.rows[2].samples, small.rows[2].samples)
    assert not torch.equal(other.student.inputs.weight, small.student.inputs.weight)


def test_every_update_is_reported():
    seen = []
    config = demo.DemoConfig(**{**vars(SMALL), "updates": 3})
    demo.run(toy.ring(), config, on_update=lambda state, _: seen.append(state.update))
    assert seen == [1, 2, 3]


def test_a_bar_on_request_changes_nothing_else(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    config = demo.DemoConfig(**{**vars(SMALL), "updates": 3})
    results, seen = [], []
    for bar in (False, True):
        results.append(
            demo.run(toy.ring(), config, lambda state, _: seen.append(state.update), bar=bar)
        )
        assert ("distilling:   0%" in capsys.readouterr().err) == bar
    assert seen == [1, 2, 3, 1, 2, 3]
    for a, b in zip(*(result.student.parameters() for result in results), strict=True):
        assert torch.equal(a, b)


def test_the_table_names_every_row(small):
    lines = demo.table(small).splitlines()
    assert len(lines) == 5
    for row, line in zip(small.rows, lines[1:4], strict=True):
        assert line.startswith(row.name)
        assert f"{row.distance:.3f}" in line
        assert line.endswith(f"{row.seconds:.2f}s")
    assert "s" not in demo.table(small, times=False).splitlines()[1].rsplit(" ", 1)[1]


def test_the_figure_names_evaluations_and_times_only_when_asked(small):
    def texts(fig):
        labels = [text.get_text() for ax in fig.axes for text in (ax.title, ax.xaxis.label)]
        return " ".join([*labels, *(text.get_text() for text in fig.texts)])

    assert "2 evaluations" in texts(plot_demo(small))
    assert "drawn in" in texts(plot_demo(small))
    assert "drawn in" not in texts(plot_demo(small, times=False))


@pytest.mark.parametrize("size", ["updates", "batch", "width", "points"])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=f"{size} is 0; allowed: an integer >= 1"):
        demo.DemoConfig(**{size: 0})


def test_the_command_writes_the_figure_and_prints_the_table(tmp_path, capsys, monkeypatch):
    out = tmp_path / "figure.png"
    threads = torch.get_num_threads()
    try:
        assert demo.main(["--updates", "5", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "student, SLAM" in printed
    assert str(out) in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such_picture.png"], "no_such_picture.png"),
        (["--out", "figure.doc"], "--out is 'figure.doc'; allowed: a name ending in"),
        (["--out", "no/such/folder/figure.png"], "allowed: a name in a folder that exists"),
        (["--updates", "0"], "updates is 0"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, sentence, capsys):
    threads = torch.get_num_threads()
    try:
        assert demo.main(arguments) == 2
    finally:
        torch.set_num_threads(threads)
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "slam_course.demo", "--out", str(tmp_path / "figure.png")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # The bar tells when training has begun, so it must not be switched off here.
        env={name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"},
        # A test run in the background of a shell ignores Ctrl-C, and would pass that on.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        bar = ""
        deadline = time.monotonic() + 60
        while "/9000" not in bar and time.monotonic() < deadline:
            bar += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted; nothing was written" in rest
    assert list(tmp_path.iterdir()) == []
