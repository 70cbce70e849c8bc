"""Reads and writes weights in published layouts, as native safetensors, and in snapshots."""
