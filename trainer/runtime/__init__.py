"""What a run stands on: ranks, compiler, signals, watchdog, CUDA graph, profiler."""
