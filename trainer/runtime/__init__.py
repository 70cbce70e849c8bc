"""The ranks, compilation, signals, watchdog, CUDA graph and profiler of a run."""
