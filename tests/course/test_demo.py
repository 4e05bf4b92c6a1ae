"""The demonstration: from a picture to a figure, whole or not at all."""

import pytest
import torch

from slam_course import demo
from slam_edu import toy

SMALL = demo.DemoConfig(components=60, updates=150, batch=128, width=32, depth=2, points=400)


@pytest.fixture(scope="module")
def small():
    return demo.run(config=SMALL)


def test_a_short_run_beats_the_teacher_at_two_evaluations(small):
    assert [(row.name, row.evaluations) for row in small.rows] == [
        ("teacher, DDIM", 50),
        ("teacher, DDIM", 2),
        ("consistency distillation", 2),
        ("SLAM", 2),
    ]
    fifty, two, *students = (row.distance for row in small.rows)
    assert small.floor <= fifty < 0.2
    assert max(students) < two
    lines = demo.table(small).splitlines()
    assert all(f"{row.distance:.3f}" in lines[1 + n] for n, row in enumerate(small.rows))


def test_the_seed_decides(small, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    seen = []
    again = demo.run(
        None, SMALL, lambda name, state, _: seen.append((name, state.update)), bar=True
    )
    assert seen == [(name, n) for name in demo.STUDENTS for n in range(1, 151)]
    assert "SLAM:   0%" in capsys.readouterr().err
    assert demo.table(again, times=False) == demo.table(small, times=False)
    assert demo.plot(again, times=False).png() == demo.plot(small, times=False).png()
    assert demo.plot(small).png() != demo.plot(small, times=False).png()
    short = {**vars(SMALL), "updates": 2}
    one, other = (
        demo.run(toy.ring(), demo.DemoConfig(**{**short, "seed": seed})).rows for seed in (0, 1)
    )
    assert not torch.equal(one[3].samples, other[3].samples)
    fifty, two = (row.off for row in one[:2])  # two steps end in the middle of the ring
    assert fifty < 0.02
    assert two > 0.9


def main(*arguments):
    threads = torch.get_num_threads()
    try:
        return demo.main(list(arguments))
    finally:
        torch.set_num_threads(threads)


def test_the_command_writes_the_figure_and_prints_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "picture", lambda components: toy.ring())
    out = tmp_path / "figure.png"
    assert main("--updates", "5", "--out", str(out)) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "consistency distillation" in printed
    assert str(out) in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such_picture.png"], "no_such_picture.png"),
        (["--out", "figure.doc"], "--out is 'figure.doc'; allowed: a name ending in"),
        (["--out", f"{__file__}/figure.png"], "is a file; allowed: the name of a folder"),
        (["--updates", "0"], "updates is 0"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, sentence, capsys):
    assert main(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_half_written(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_student", interrupted)
    assert main("--out", str(tmp_path / "figure.png")) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
