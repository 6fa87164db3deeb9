"""Checks of this machine, this installation and an experiment before it runs, each problem with its fix."""
