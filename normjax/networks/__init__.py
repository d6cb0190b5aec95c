"""The paper's networks as Flax modules, and their convolution."""
