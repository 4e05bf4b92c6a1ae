"""For every pytest run in the checkout: hypothesis' settings.

No deadline: the first call into torch takes a second that says nothing about the code. In CI the
examples are the same in every run, so that a red run is about the change and can be repeated.
"""

import os

import hypothesis

hypothesis.settings.register_profile("slam_edu", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("slam_edu"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "slam_edu")
