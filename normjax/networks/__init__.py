"""The paper's networks as Flax modules, and the convolution they call."""
