"""What the lessons show, play with and check, one folder a lesson; built on :mod:`slam_edu`."""
