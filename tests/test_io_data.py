"""Where the course's data files are found."""

import pytest

from slam_edu import io as resources
from slam_edu.io import data_path


def test_a_file_of_the_checkout_is_found():
    assert data_path("README.md").read_text(encoding="utf-8").startswith("# data/")


def test_the_wheels_own_copy_comes_first(tmp_path, monkeypatch):
    package = tmp_path / "slam_edu"
    for folder in (package / "_data" / "pictures", tmp_path / "data" / "pictures"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    (tmp_path / "data" / "pictures" / "a.png").touch()
    assert data_path("pictures/a.png") == tmp_path / "data" / "pictures" / "a.png"
    (package / "_data" / "pictures" / "a.png").touch()
    assert data_path("pictures/a.png") == package / "_data" / "pictures" / "a.png"
    assert data_path("pictures") == package / "_data" / "pictures"


def test_a_missing_file_is_named_with_the_places_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "slam_edu")
    with pytest.raises(FileNotFoundError) as caught:
        data_path("pictures/none.png")
    text = str(caught.value)
    assert "'pictures/none.png' is missing" in text
    assert str(tmp_path / "slam_edu" / "_data" / "pictures" / "none.png") in text
    assert str(tmp_path / "data" / "pictures" / "none.png") in text


@pytest.mark.parametrize(
    "name", ["", ".", "/etc/passwd", "../pyproject.toml", "a/../../b", "a\\b"]
)
def test_a_path_out_of_the_folder_is_refused(name):
    with pytest.raises(ValueError, match="a path below data/") as caught:
        data_path(name)
    assert repr(name) in str(caught.value)
