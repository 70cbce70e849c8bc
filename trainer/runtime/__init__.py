"""The technical basis of a run: ranks, compiler, signals, watchdog, CUDA graph and profiler."""
