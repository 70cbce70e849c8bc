"""What a run writes about itself: log, records, TensorBoard, the terminal."""
