"""A sweep of a residual network (NNX): what is added must scale alike, so the block stays as it is.

    python examples/residual_network.py

`tied="keep"` normalizes the layers before and after the residual block, which is exact.
"""

from functools import partial

from flax import nnx

import normjax

# As JAX's convolution, but fast on a CPU.
Conv = partial(nnx.Conv, conv_general_dilated=normjax.conv_general_dilated)


class Block(nnx.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, features, *, rngs):
        """Make the layers."""
        self.conv1 = Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.conv2 = Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        """Map features to features of the same shape."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(y)))


class ResNet(nnx.Module):
    """A convolution, a residual block, the mean over positions and a dense layer."""

    def __init__(self, *, rngs):
        """Make the layers."""
        self.stem = Conv(1, 8, (3, 3), rngs=rngs)
        self.block = Block(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        """Map images [N, H, W, 1] to logits [N, 10]."""
        x = self.block(nnx.relu(self.stem(images)))
        return self.head(x.mean(axis=(1, 2)))


def main():
    """Print what can be normalized, train a sweep, and judge its line."""
    config = normjax.SweepConfig(
        workdir="runs/residual_network",
        resume=True,  # a second call reads the finished run
        tied="keep",
        train_size=250,
        num_seeds=2,
        pretrain_epochs=5,
        epochs=20,
        batch_size=25,
        learning_rate=0.05,
    )
    run = normjax.run_sweep(config, model=ResNet)
    print(run.classifier.structure)
    found = normjax.explain_line(run.run_dir)
    print(f"Verdict: {found.verdict}: {found.because}.")


if __name__ == "__main__":
    main()
