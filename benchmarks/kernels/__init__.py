"""The opt-in Triton blocks: speed, registers, bytes."""
