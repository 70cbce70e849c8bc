"""What a run logs: train.log, metrics.jsonl, TensorBoard, Weights & Biases, and lines on the terminal."""
