"""A CUDA device that isn't there, to find host waits, races and mixed devices on a CPU (docs/pretended-gpu.md)."""
