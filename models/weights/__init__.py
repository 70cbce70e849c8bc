"""Weights in and out: published layouts, native safetensors, snapshots."""
