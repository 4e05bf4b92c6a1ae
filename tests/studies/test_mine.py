"""A method of one's own: what breaks the contract is named; a good one is placed, and repeats."""

import json
import re
from pathlib import Path

import pytest
import torch

from slam_course.family import METHODS, template, training
from slam_course.family.base import Counted, Trio
from slam_course.family.contract import Broken, check, load, setting_of
from slam_course.family.placing import place, run_one
from slam_course.family.results import Choice, Row, rows_text
from slam_edu.io import data_path, sha256_of
from slam_edu.training import TrainConfig
from studies.family.__main__ import main
from studies.family.mine import CONFIG

TEMPLATE = Path(template.__file__).read_text("utf-8")
RESULT = "return self.distance(self.solve(networks.student, x_t, t), y)"
SAMPLE = "\n    def sample(self, student, x, steps, generator):\n        "
SUPER = "super().sample(student, x, steps, generator)"
INNER = "[c.cell_contents for c in networks.{}._evaluate.__closure__ if isinstance({}, {})][0]"
INNER = INNER.format("{}", "c.cell_contents", "torch.nn.Module")
EMPTY = "from slam_course.family.base import Method\n"


def broken(old, new):
    """The template with one mistake."""
    assert TEMPLATE.count(old) == 1
    return TEMPLATE.replace(old, new)


def loss(line):
    return broken(RESULT, line)


def sample(line):
    return TEMPLATE + SAMPLE + line


def refused(tmp_path, text, **options):
    """The sentence with which a file is refused."""
    file = tmp_path / "my_method.py"
    file.write_text(text, "utf-8")
    with pytest.raises(Broken) as caught:
        rehearsed(file, **options)
    return str(caught.value)


def rehearsed(file, **options):
    method = load(file)
    check(method, setting_of(method, **options))


BROKEN = {
    # The file and its class.
    "syntax": (broken("def draw(self", "def draw((self"), "line 15: .*allowed: a Python file"),
    "import": ("import nothing_such\n", "cannot be imported: .*nothing_such"),
    "no class": (EMPTY, r"has the classes \[\], 0 of which are methods; allowed: .* one class"),
    "not a method": (broken("(Method)", ""), r"\['MyMethod'\], 0 of which"),
    "two methods": (TEMPLATE + "\n\nclass B(MyMethod): pass\n", r"\['MyMethod', 'B'\], 2 of"),
    "no name": (broken('    name = "log-uniform hop"\n', ""), "name of MyMethod is None"),
    "name taken": (broken("log-uniform hop", "MeanFlow"), "'MeanFlow', which is taken"),
    "lr": (broken("lr, ema_rate, subpaths = 4e-3", "lr, ema_rate, subpaths = 0"), "lr is 0; "),
    "ema rate": (broken("0.9, 20", "1.0, 20"), "ema_rate is 1.0; allowed: 0 <= ema_rate < 1"),
    "N": (broken("0.9, 20", "0.9, 30"), "subpaths is 30; allowed: a divisor of 1000"),
    "loss's name": (broken("    lr, ema", '    loss_name = "l1"\n    lr, ema'), "loss is 'l1'; "),
    "constructor": (
        broken("    # Beside", "    def __init__(self): pass\n    # Beside"),
        "__init__ raises TypeError",
    ),
    # The loss.
    "no draw": (broken("def draw", "def drew"), "draw raises NotImplementedError"),
    "shape of loss": (loss("return (x_t - y).square()"), r"shape \(64, 2\), .*allowed: a scalar"),
    "not a tensor": (loss("return 1.0"), "loss is a float; allowed: a scalar"),
    "NaN": (loss(RESULT + " * float('nan')"), "loss is nan after 0% of the budget"),
    "late NaN": (loss(RESULT + " / (networks.used < 0.9)"), "loss is inf after 100%"),
    "NaN gradient": (
        loss(RESULT + " + (0 * networks.student(x_t, t)).sum().sqrt()"),
        "gradient of loss is not finite",
    ),
    "error": (loss("return 1 / 0"), "loss raises ZeroDivisionError in line 30"),
    "teacher's gradient": (
        loss("return self.distance(networks.teacher(self.solve(networks.student, x_t, t), t), y)"),
        "a gradient reached the teacher, which is not trained; call it under",
    ),
    "target's gradient": (
        loss("return self.distance(networks.target(self.solve(networks.student, x_t, t), t), y)"),
        "a gradient reached the target",
    ),
    "target trained": (
        loss(f"next({INNER.format('target')}.parameters()).data.add_(1)\n        {RESULT}"),
        "loss changes a weight of the target in place",
    ),
    "no student": (loss("return self.distance(x_t, y)"), "calls networks.student never; allowed"),
    "no gradient": (
        loss(f"with torch.no_grad():\n            {RESULT}"), "networks.student without gradient"
    ),
    "gradient 0": (loss(RESULT + " * 0"), "gradient of loss is 0"),
    "x0 unused": (broken("mix(x0,", "mix(0 * x0,"), "loss is the same for other data"),
    "changes x0": (broken("index = ", "x0.mul_(2)\n        index = "), "draw changes x0 in place"),
    "changes noise": (loss(f"noise.mul_(2)\n        {RESULT}"), "loss changes the batch in place"),
    "prints": (loss(f"print('hello')\n        {RESULT}"), "loss prints 'hello.*allowed: nothing"),
    # Counting and cost.
    "reaches inside": (loss("networks.student.network(x_t, t)"), "'network' of a counted network"),
    "copies": (loss("import copy; copy.deepcopy(networks.target)"), "Trio.freeze"),
    "not counted": (
        loss(f"{INNER.format('target')}(x_t, t)\n        {RESULT}"),
        "evaluates the target for 128 samples and 0 backward, but 64 and 0 are counted",
    ),
    "takes back": (
        loss(f"networks.teacher.calls.forward = 0\n        {RESULT}"), "but 0 and 0 are counted"
    ),
    "takes back more": (
        loss(f"networks.student.calls.backward -= 64\n        {RESULT}"), "but 64 and 0 are"
    ),
    "too dear": (
        loss(f"[networks.teacher(x_t, t) for _ in range(1000)]\n        {RESULT}"),
        "10000 pay for fewer than 10 updates; allowed: 1000 evaluations a sample",
    ),
    "endless": (loss("while True: networks.teacher(x_t, t)"), "fewer than 10 updates"),
    # Chance and state.
    "global draw": (
        broken("share = torch.rand(len(x0), generator=generator)", "share = torch.rand(len(x0))"),
        "draw draws from the global generator",
    ),
    "draws of its own": (
        broken("index = ", "torch.Generator().seed(); generator = torch.Generator(); "
               "generator.seed()\n        index = "),
        "a second run with the same seed differs",
    ),
    "no draws": (
        broken("index = ", "generator = torch.Generator()\n        index = "),
        "loss is the same for another seed",
    ),
    "leaks": (
        loss(f"type(self).lr += 1\n        {RESULT} * self.lr"),
        "a second run with the same seed differs from the first; allowed: state in the instance",
    ),
    # The sampler.
    "shape": (sample(f"return {SUPER}[:, 0]"), r"in 1 steps gives .*\(64,\).*\(64, 2\)"),
    "not finite": (sample(f"return {SUPER} / (steps < 8)"), "in 8 steps gives NaN or Inf"),
    "too often": (sample("return " + SUPER.replace("steps", "steps + 1")), "more than 1 times"),
    "no call": (sample("return x.clone()"), "in 1 steps never calls the student"),
    "ignored": (sample(f"{SUPER}; return x.clone()"), "in 1 steps ignores its student"),
    "kept student": (
        loss(f"self.kept = networks.student\n        {RESULT}")
        + sample("return " + SUPER.replace("student", "self.kept"))[len(TEMPLATE):],
        "in 1 steps ignores its student",
    ),
    "teacher": (
        loss(f"self.kept = networks.teacher\n        {RESULT}")
        + sample("return self.kept(x, torch.full((len(x),), 999))")[len(TEMPLATE):],
        "in 1 steps calls the teacher; allowed: the student alone",
    ),
    "changes noise of samples": (sample(f"return {SUPER.replace('x,', 'x.mul_(1.1),')}"),
                                 "in 1 steps changes x in place"),
    "sampler's global draw": (sample(f"return {SUPER} + torch.randn(1)"), "global generator"),
    "solve": (TEMPLATE + "\n    def solve(self, student, x, t):\n        "
              "return super().solve(student, x, t).double()\n", "in 1 steps gives .*float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_is_told_what_is_wrong(name, tmp_path):
    text, wanted = BROKEN[name]
    assert re.search(wanted, refused(tmp_path, text), re.DOTALL)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"lr": "fast"}, "lr is 'fast'; allowed: a finite number > 0"),
        ({"pieces": 2.5}, "pieces is 2.5; allowed: an integer >= 1"),
        ({"cost": 0}, "cost is 0; "),
        ({"teacher": "none"}, "teacher is 'none'; allowed: 'exact', 'learned'"),
        ({"rate": 1}, "rate is 1; allowed: one of lr, ema_rate, subpaths"),
    ],
)
def test_options_of_a_wrong_value_are_refused(options, wanted, tmp_path):
    assert wanted in refused(tmp_path, TEMPLATE, **options)


def test_what_is_not_a_file_or_a_method_is_refused(tmp_path):
    with pytest.raises(Broken, match=r"nowhere.py' is not a file; allowed: a Python file"):
        load(tmp_path / "nowhere.py")
    with pytest.raises(Broken, match=r"'int'.* is not a method; allowed: a subclass of Method"):
        setting_of(int)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by a tangent
@pytest.mark.parametrize("name", METHODS)
def test_the_family_keeps_to_the_contract(name):
    check(METHODS[name], setting_of(METHODS[name]))


def test_a_frozen_copy_stays_as_it_is_and_counts_as_its_network():
    network = torch.nn.Linear(2, 2)
    target = Counted(lambda x, t, cond: network(x), "target")
    learned = Counted(Called(network), "student")
    networks = Trio(teacher=target, student=learned, target=target)
    copy, x, t = networks.freeze(learned), torch.ones(3, 2), torch.ones(3)
    before = copy(x, t)
    network.weight.data.add_(1)
    assert torch.equal(copy(x, t), before)
    assert not torch.equal(learned(x, t), before)
    assert networks.cost() == 9


class Called(torch.nn.Module):
    """Called as networks are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, cond):
        return self.network(x)


# -------------------------------------------------------------------- placed, and repeated

DATA = ("ring", "two_moons")
OF = "methods of one's own in studies.family"
CD = Choice(method="consistency distillation", cost=60.0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Students from a diffusion model of 3 updates, measured at few points; a file to place."""
    at = {t: torch.ones(3, 2) for t in training.TIMES}
    for name, value in {
        "INIT": TrainConfig(updates=3, batch=16), "POINTS": 200,
        "_solved": lambda data: (at, at, 0.0),
        "diffusion_model": training.diffusion_model.__wrapped__,
    }.items():  # fmt: skip
        monkeypatch.setattr(training, name, value)
    file = tmp_path / "my_method.py"
    file.write_text(TEMPLATE, "utf-8")
    return file


def test_a_method_is_placed_and_its_entry_repeats(small, tmp_path, capsys):
    rows = place(small, [], {}, data=DATA, seeds=2, cost=60).rows
    assert {row.after for row in rows} == {12}  # 60 evaluations of 5 each
    stored = []
    for row in rows:
        twice = {name: 2 * value for name, value in row.measured.items()}
        stored.append(Row(CD, row.data, row.seed, 12, True, twice, 60))
        for other in ({"cost": 70.0}, {"teacher": "learned"}, {"lr": 1.0}):  # not compared
            stored.append(Row(CD.replace(**other), row.data, row.seed, 12, True, row.measured))
    (tmp_path / "runs.csv").write_text(rows_text(stored), "utf-8")
    (tmp_path / "chosen.json").write_text('{"consistency distillation": {}}', "utf-8")
    board = tmp_path / "board.json"
    base = ["--stored", str(tmp_path), "--board", str(board), "--workers", "1"]
    own = ["--mine", str(small), "--cost", "60", "--seeds", "2", "--data", *DATA]
    assert main([*own, *base]) == 0
    said = capsys.readouterr().out
    assert re.search(r"consistency distillation +50 +4/4 .* 0.50 \[0.50, 0.50\] ", said)
    assert said.index("log-uniform hop <-") < said.index("consistency distillation")  # the best
    assert re.search(r"No rows are stored at cost 60 .* for .*; MeanFlow; ", said)

    (entry,) = json.loads(board.read_text("utf-8"))["rows"]
    assert entry["config"] == {
        "lr": 4e-3, "ema_rate": 0.9, "subpaths": 20, "pieces": 0, "loss": "l2", "cost": 60.0
    }  # fmt: skip
    assert entry["command"].startswith(f"python -m studies.family --mine {small}")
    repeat = ["--leaderboard", "log-uniform hop", *base]
    assert main(repeat) == 0
    lines = re.findall(r"(\S+), was (\S+)", capsys.readouterr().out)
    assert len(lines) == len(entry["figures"]) == 9
    assert all(now == was for now, was in lines)
    entry["figures"]["sw_2"] = [9.0, 8.0, 10.0]
    board.write_text(json.dumps({"of": OF, "rows": [entry]}), "utf-8")
    assert main(repeat) == 1
    assert re.search(
        r"sw_2 .* was 9.00000 \[8.00000, 10.00000\] OUTSIDE\n", capsys.readouterr().out
    )


def test_the_board_says_what_it_cannot_repeat(small, tmp_path, capsys):
    board, figures = tmp_path / "board.json", {"sw_4": [0.1, 0.05, 0.2]}
    row = {"name": "log-uniform hop", "file": "other.py", "sha256": "0", "config": {}, "data": [],
           "seeds": 2, "figures": figures, "cost": 60}  # fmt: skip
    board.write_text(json.dumps({"of": OF, "rows": [row]}), "utf-8")
    base = ["--board", str(board), "--stored", str(tmp_path)]
    assert main(["--leaderboard", *base]) == 0
    assert "sw 4 0.1000 [0.0500, 0.2000], cost 60: log-uniform hop" in capsys.readouterr().out
    for argv, wanted in (
        (["--mine", str(small)], "'log-uniform hop', taken by other.py on the board"),
        (["--leaderboard", "other"], "entry is 'other'; allowed: log-uniform hop"),
        (["--leaderboard", "log-uniform hop"], "'other.py' is not a file"),
    ):
        assert main([*argv, *base]) == 2
        assert wanted in capsys.readouterr().err
    row["file"] = str(small)
    board.write_text(json.dumps({"of": OF, "rows": [row]}), "utf-8")
    assert main(["--leaderboard", "log-uniform hop", *base]) == 2
    assert "has changed since" in capsys.readouterr().err


def test_updates_that_cost_more_later_are_refused(small):
    later = "[networks.teacher(x_t, t) for _ in range(9 * (networks.used > 0.4))]"
    small.write_text(loss(f"{later}\n        {RESULT}"), "utf-8")
    setting = setting_of(load(small), cost=100)
    with pytest.raises(Broken, match="every update must cost as much as the first"):
        run_one((small, setting, "ring", 0))


def test_the_template_is_short_and_the_shipped_board_is_of_it():
    assert len(TEMPLATE[TEMPLATE.index("class ") :].strip().splitlines()) <= 40
    (row,) = json.loads(data_path("family/leaderboard.json").read_text("utf-8"))["rows"]
    assert row["sha256"] == sha256_of(template.__file__)
    setting = setting_of(template.MyMethod, cost=row["config"]["cost"])
    assert row["config"] == {key: getattr(setting, key) for key in CONFIG}
