"""A sweep of your own network: a small VGG with batch normalization and max pooling, on digits.

    python examples/your_own_network.py

The command line does the same:

    python -m experiments.random_pretrain --model=examples.your_own_network:Vgg --workdir=runs/vgg
"""

import flax.linen as nn
import jax

import normjax


class Vgg(nn.Module):
    """Two blocks of convolutions, each with max pooling, and two dense layers."""

    @nn.compact
    def __call__(self, images, *, train=False):
        """Map images [N, H, W, C] to logits [N, 10]."""
        x, conv = images, normjax.conv_general_dilated  # as JAX's, but fast on a CPU
        for features in (8, 8, "pool", 16, "pool"):
            if features == "pool":
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.Conv(features, (3, 3), use_bias=False, conv_general_dilated=conv)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


def main():
    """Print what normalization may do to this network, train a sweep, and judge its line."""
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")
    variables = jax.eval_shape(Vgg().init, jax.random.key(0), images)
    print(normjax.trace_structure(Vgg().apply, variables, images))

    config = normjax.SweepConfig(
        workdir="runs/your_own_network",
        resume=True,  # a second call reads the finished run
        train_size=250,
        num_seeds=2,
        pretrain_epochs=5,
        epochs=20,
        batch_size=25,
        learning_rate=0.05,
        norms=(2, "spectral"),
    )
    run = normjax.run_sweep(config, model=Vgg)
    found = normjax.explain_line(run.run_dir)
    print(f"Verdict: {found.verdict}: {found.because}.")


if __name__ == "__main__":
    main()
