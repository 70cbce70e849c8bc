"""The output of a run: log, records, TensorBoard, and lines on the terminal."""
