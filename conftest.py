"""For every pytest run in the checkout, the notebooks' included: two adjustments of plugins."""

import os

import hypothesis
from nbval.kernel import RunningKernel


def _execute_and_count(self, cell_input, allow_stdin=None):
    """Run a cell as Jupyter does, with an execution count.

    nbval runs cells without one. IPython then looks for a trailing `;`, which hides a cell's
    value, in the wrong cell: `ax.plot(...);` would show up as an output that nobody stored.
    """
    return self.kc.execute(
        cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
    )


RunningKernel.execute_cell_input = _execute_and_count

# No deadline: the first call into torch takes a second that says nothing about the code. In CI the
# examples are the same in every run, so that a red run is about the change and can be repeated.
hypothesis.settings.register_profile("slam_edu", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("slam_edu"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "slam_edu")
