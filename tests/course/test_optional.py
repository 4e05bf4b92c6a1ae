"""A lesson without an optional package gets None, not an exception."""

import collections

import pytest

from slam_course.optional import optional


def test_an_installed_package_gives_the_object():
    assert optional("collections", "deque") is collections.deque


def test_a_missing_package_gives_none():
    assert optional("a_package_that_nobody_has", "Thing") is None


def test_a_wrong_name_is_an_error_and_not_taken_for_a_missing_package():
    with pytest.raises(AttributeError, match="no_such_name"):
        optional("collections", "no_such_name")
