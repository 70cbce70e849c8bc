"""The data path: from files to batches, ours and MMAction2's; JPEG frames and heatmaps on the card."""
