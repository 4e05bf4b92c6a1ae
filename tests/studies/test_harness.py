"""The studies' harness: jobs in parallel, resuming, files of results, statuses of commands."""

import json
import os
import time

import pytest

from studies.harness import Failure, ResultsFile, command, machine, results_of, run_all, table


def square(n):
    """A job, in a process of its own."""
    if n < 0:
        return Failure(f"{n} is negative")
    if n == 13:
        raise ValueError("13 is refused")
    return n, n * n, os.getpid()


def key(row):
    return row["name"]


def test_jobs_run_in_processes_of_their_own():
    found = list(results_of(square, [1, 2, 3, 4], workers=2))
    assert sorted(pair[:2] for pair in found) == [(1, 1), (2, 4), (3, 9), (4, 16)]
    assert os.getpid() not in {pid for _, _, pid in found}
    start = time.perf_counter()
    with pytest.raises(ValueError, match="13 is refused"):
        list(results_of(square, [13, *range(20, 60)], workers=2))
    assert time.perf_counter() - start < 60  # what waits is not run


def test_failures_are_told_and_the_rest_is_kept(capsys):
    kept = []
    failed = run_all([2, -1, 3], square, kept.append, workers=1, unit="number")
    assert failed == ["-1 is negative"]
    assert [n for n, *_ in kept] == [2, 3]
    assert "numbers: 100%" in capsys.readouterr().err


def test_what_is_finished_before_a_stop_is_kept(tmp_path):
    file = ResultsFile(tmp_path / "rows.json", {"count": 3}, key)

    def keep(found):
        file.add({"name": found[0], "square": found[1] / 3})

    def missing():
        there = {row["name"] for row in file.read()["rows"]}
        return [n for n in (5, 2, 13, 4) if n not in there]

    with pytest.raises(ValueError, match="13 is refused"):
        run_all(missing(), square, keep, workers=1)
    assert missing() == [13, 4]
    run_all([4], square, keep, workers=1)
    content = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert content["count"] == 3
    assert content["rows"] == [
        {"name": 2, "square": 1.33333}, {"name": 4, "square": 5.33333},
        {"name": 5, "square": 8.33333},
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.json"]
    file.add({"name": 4, "square": 0.0})
    assert [row["square"] for row in file.read()["rows"]] == [1.33333, 0.0, 8.33333]


def test_a_file_of_another_study_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    with pytest.raises(FileNotFoundError, match="run the study"):
        ResultsFile(path, {}, key).read()
    ResultsFile(path, {"about": {"seeds": 1, "w": 0.1234567}}, key, exact=("about",)).add(
        {"name": "a"}
    )
    same = ResultsFile(path, {"about": {"seeds": 1, "w": 0.1234567}}, key)
    assert len(same.read()["rows"]) == 1
    other = ResultsFile(path, {"about": {"seeds": 2, "w": 0.1234567}}, key)
    with pytest.raises(ValueError, match=r"another study \(seeds: 1 there, 2 here\)"):
        other.read()
    for text in ("{", "[]", '{"rows": []}', '{"about": {}, "rows": [3]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="cannot be read"):
            other.read()


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("no"), 2, "prog: no\n"),
        (FileNotFoundError("gone"), 2, "prog: gone\n"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_statuses(raised, status, line, capsys):
    def body():
        raise raised

    assert command("prog", body) == status
    assert line in capsys.readouterr().err
    assert command("prog", lambda: 1) == 1


def test_tables_and_machines():
    assert table(["", "n"], [["a", "1"]]) == "|  | n |\n| --- | ---: |\n| a | 1 |\n"
    assert machine()["threads"] >= 1
