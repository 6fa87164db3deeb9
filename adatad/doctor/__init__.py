"""What is wrong with this machine, this installation or an experiment before it runs, and how to fix it."""
