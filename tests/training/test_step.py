"""Training of one network: steps, microbatches, padded batches, batch normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.training.step import (
    Batch,
    Metrics,
    TrainState,
    init_state,
    make_train_epoch,
    make_train_step,
    reset_optimizer,
)
from tests.helpers import reference
from tests.helpers.classifiers import classifier_of

pytestmark = pytest.mark.slow

LEARNING_RATE, MOMENTUM = 0.05, 0.9
TX = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


def make_batch(num, shape=(8, 8, 1), num_classes=10, seed=0, num_padding=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num + num_padding, *shape)).astype(np.uint8)
    labels = rng.integers(0, num_classes, num + num_padding).astype(np.int32)
    return Batch(images, labels, (np.arange(num + num_padding) < num).astype(np.float32))


def start(classifier, seed=0):
    return jax.jit(lambda: init_state(classifier, TX, jax.random.key(seed)))()


def make_step(classifier, *args, **how):
    """A compiled step; the key is that of dropout, which these networks do not have."""
    step = make_train_step(classifier, TX, *args, **how)
    return jax.jit(lambda state, batch: step(state, batch, jax.random.key(0)))


def assert_trees_close(actual, expected, rtol=0.0, atol=0.0):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def momentum_of(state):
    """SGD's trace, a tree like the parameters."""
    (trace,) = [part.trace for part in state.opt_state if hasattr(part, "trace")]
    return trace


@pytest.mark.parametrize(("num_steps", "weight_decay"), [(1, 0.0), (3, 0.0), (3, 0.3)])
def test_linear_steps_are_softmax_regression_in_numpy(num_steps, weight_decay):
    shape, num_classes = (4, 3, 2), 5
    classifier = classifier_of("linear", shape, num_classes)
    state, step = start(classifier), make_step(classifier, weight_decay=weight_decay)
    kernel = np.asarray(state.variables["params"]["Dense_0"]["kernel"], np.float64)
    velocity = np.zeros_like(kernel)
    for i in range(num_steps):
        batch = make_batch(7, shape, num_classes, seed=i, num_padding=2)
        state, metrics = step(state, batch)
        # Closed form: the gradient is X^T (softmax(X W) - Y) / B over the 7 real examples.
        x = reference.standardize(batch.images[:7]).reshape(7, -1)
        labels, logits = batch.labels[:7], x @ kernel
        loss = reference.cross_entropy(logits, labels).mean()
        np.testing.assert_allclose(metrics.loss, loss, rtol=2e-6, atol=0)
        np.testing.assert_allclose(metrics.error, reference.error(logits, labels).mean(), rtol=1e-6)
        gradient = x.T @ (reference.softmax(logits) - np.eye(num_classes)[labels]) / 7
        velocity = MOMENTUM * velocity + gradient + weight_decay * kernel
        kernel = kernel - LEARNING_RATE * velocity
    np.testing.assert_allclose(
        state.variables["params"]["Dense_0"]["kernel"], kernel, rtol=0, atol=5e-7
    )
    np.testing.assert_allclose(momentum_of(state)["Dense_0"]["kernel"], velocity, rtol=0, atol=2e-6)
    assert np.abs(velocity).max() > 0.1


def test_weight_decay_is_for_biases_and_batch_norm_too():
    """From zero momentum, a step's difference is learning rate * weight decay * parameter."""
    for name, options in (("convnet3", {}), ("convnet5", {"batch_norm": True})):
        classifier = classifier_of(name, **options)
        state = start(classifier)
        moved = jax.tree.map(lambda x: x + jnp.float32(0.1), state.variables["params"])
        state = state._replace(variables={**state.variables, "params": moved})
        plain, decayed = (
            make_step(classifier, weight_decay=decay)(state, make_batch(6))[0].variables
            for decay in (0.0, 0.5)
        )
        difference = jax.tree.map(jnp.subtract, plain["params"], decayed["params"])
        expected = jax.tree.map(lambda x: LEARNING_RATE * 0.5 * np.asarray(x), moved)
        assert_trees_close(difference, expected, atol=3e-6)
        statistics = (({**v, "params": {}}) for v in (plain, decayed))
        assert_trees_close(*statistics)
        names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(difference)}
        assert names == {"kernel", "bias"} | ({"scale"} if options else set())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_convnet3_steps_are_those_of_pytorch_in_float64(weight_decay):
    torch = pytest.importorskip(
        "torch", reason="an optional extra: the linear network's steps are tested without it"
    )
    classifier = classifier_of("convnet3")
    state = start(classifier, seed=1)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.variables["params"])

    def parameter(array, axes):
        return torch.tensor(array.transpose(axes).copy(), requires_grad=True)

    kernel_1 = parameter(params["Conv_0"]["kernel"], (3, 2, 0, 1))
    kernel_2 = parameter(params["Conv_1"]["kernel"], (3, 2, 0, 1))
    bias = parameter(params["Conv_0"]["bias"], (0,))
    dense = parameter(params["Dense_0"]["kernel"], (0, 1))
    optimizer = torch.optim.SGD(
        [kernel_1, bias, kernel_2, dense], LEARNING_RATE, MOMENTUM, weight_decay=weight_decay
    )
    step = make_step(classifier, weight_decay=weight_decay)
    for i in range(3):
        batch = make_batch(6, seed=i)
        state, metrics = step(state, batch)
        x = torch.tensor(reference.standardize(batch.images).transpose(0, 3, 1, 2))
        x = torch.relu(torch.nn.functional.conv2d(x, kernel_1, bias))
        x = torch.relu(torch.nn.functional.conv2d(x, kernel_2))
        logits = x.permute(0, 2, 3, 1).reshape(6, -1) @ dense
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.labels).long())
        np.testing.assert_allclose(metrics.loss, loss.item(), rtol=1e-5, atol=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = state.variables["params"]
    for ours, theirs, axes in (
        (trained["Conv_0"]["kernel"], kernel_1, (2, 3, 1, 0)),
        (trained["Conv_0"]["bias"], bias, (0,)),
        (trained["Conv_1"]["kernel"], kernel_2, (2, 3, 1, 0)),
        (trained["Dense_0"]["kernel"], dense, (0, 1)),
    ):
        expected = theirs.detach().numpy().transpose(axes)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_microbatches_give_the_whole_batchs_step():
    classifier = classifier_of("convnet3")
    state = start(classifier)
    batch = make_batch(5, num_padding=3)
    whole_state, whole_metrics = make_step(classifier)(state, batch)
    state, metrics = make_step(classifier, 2)(state, batch)
    assert_trees_close(metrics, whole_metrics, rtol=1e-5)
    assert_trees_close(momentum_of(state), momentum_of(whole_state), atol=1e-6)
    assert_trees_close(state.variables, whole_state.variables, atol=1e-6)
    assert np.abs(momentum_of(state)["Conv_0"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "microbatch_size"),
    [(10, 4, None), (12, 4, None), (5, 5, None), (1, 1, None), (11, 7, 2), (13, 5, 4), (8, 8, 8)],
)
def test_an_epoch_visits_every_example_once(num_examples, batch_size, microbatch_size):
    """A step that counts: image i is a lone pixel of value i, its label 3 i."""

    def count(counts, batch, _):
        assert batch.images.shape[0] % (microbatch_size or batch_size) == 0
        pixels = batch.images[:, 0, 0, 0].astype(jnp.int32)
        number = jnp.sum(batch.weights)
        metrics = Metrics(
            jnp.sum(batch.weights * batch.labels.astype(jnp.float32)) / number,
            jnp.sum(jnp.where(batch.labels == 3 * pixels, batch.weights, 0)) / number,
            *[jnp.sum(batch.weights) / number] * 2,
        )
        counts = counts.at[pixels].add(batch.weights)
        return counts.at[-1].add(jnp.where(number > batch_size, 100, 1)), metrics

    images = np.arange(num_examples, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = 3 * np.arange(num_examples, dtype=np.int32)
    epoch = jax.jit(make_train_epoch(count, batch_size, microbatch_size))
    counts, metrics = epoch(jnp.zeros(num_examples + 1), images, labels, jax.random.key(0))
    num_steps = -(-num_examples // batch_size)
    np.testing.assert_array_equal(counts, [*np.ones(num_examples), num_steps])
    np.testing.assert_allclose(metrics.loss, labels.mean(), rtol=1e-6)
    assert metrics.error == 1  # image and label belong together
    assert metrics.normalized_excess == 1


def test_an_epochs_order_comes_from_its_key():
    def record(state, batch, _):
        position, order = state
        order = jax.lax.dynamic_update_slice(order, batch.images[:, 0, 0, 0], (position,))
        return (position + 4, order), Metrics(*jnp.zeros(4))

    images = np.arange(64, dtype=np.uint8).reshape(-1, 1, 1, 1)
    epoch = jax.jit(make_train_epoch(record, 4))
    orders = [
        np.asarray(epoch((0, jnp.zeros(64, jnp.uint8)), images, np.zeros(64, int), key)[0][1])
        for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1))
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    for order in (orders[0], orders[2]):
        np.testing.assert_array_equal(np.sort(order), np.arange(64))
    # Two shuffles, and the original order, agree at about one place in 64.
    for one, other in ((orders[0], orders[2]), (orders[0], np.arange(64))):
        assert np.sum(one == other) < 10


def test_an_epochs_metrics_are_means_over_examples():
    """With learning rate 0 they are the data set's, whatever the last batch's size."""
    shape, num_examples = (3, 3, 1), 10
    classifier, tx = classifier_of("linear", shape, 4), optax.sgd(0.0)
    state = init_state(classifier, tx, jax.random.key(0))
    images, labels, _ = make_batch(num_examples, shape, 4)
    epoch = jax.jit(make_train_epoch(make_train_step(classifier, tx), 4))
    _, metrics = epoch(state, images, labels, jax.random.key(1))
    logits = reference.linear_logits(state.variables["params"], images)
    expected = reference.cross_entropy(logits, labels).mean()
    np.testing.assert_allclose(metrics.loss, expected, rtol=2e-6, atol=0)
    np.testing.assert_allclose(metrics.error, reference.error(logits, labels).mean(), rtol=1e-6)
    normalized = logits / reference.product_norm(state.variables["params"], 2)
    excess = reference.excess(normalized, labels).mean()
    np.testing.assert_allclose(metrics.normalized_excess, excess, rtol=1e-5, atol=0)
    log_product = np.log(reference.product_norm(state.variables["params"], 2))
    np.testing.assert_allclose(metrics.log_product_norm, log_product, rtol=1e-5, atol=0)
    assert abs(excess) > 1e-3


def test_reset_optimizer_keeps_the_network_and_forgets_momentum():
    shape = (4, 4, 1)
    classifier = classifier_of("linear", shape)
    step = make_step(classifier)
    state, _ = step(start(classifier), make_batch(6, shape))
    fresh = reset_optimizer(TX, state)
    assert np.abs(momentum_of(state)["Dense_0"]["kernel"]).max() > 0.01
    assert_trees_close(fresh.variables, state.variables)
    assert_trees_close(momentum_of(fresh), jax.tree.map(jnp.zeros_like, momentum_of(state)))
    # The next step is that of a network which starts here.
    batch = make_batch(6, shape, seed=1)
    restarted = TrainState(state.variables, TX.init(state.variables["params"]))
    assert_trees_close(step(fresh, batch)[0], step(restarted, batch)[0])
    kernels = [step(s, batch)[0].variables["params"]["Dense_0"]["kernel"] for s in (fresh, state)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_padding_does_not_enter_batch_norms_statistics():
    classifier = classifier_of("convnet5", batch_norm=True)
    state, step = start(classifier), make_step(classifier)
    padded = make_batch(6, num_padding=3)
    garbage = padded.images.copy()
    garbage[6:] = 255 - garbage[6:]
    plain = Batch(*(part[:6] for part in padded))
    expected, expected_metrics = step(state, plain)
    other, _ = step(state, padded._replace(images=garbage))
    actual, metrics = step(state, padded)
    assert_trees_close(metrics, expected_metrics, rtol=1e-5)
    assert_trees_close(actual.variables, expected.variables, atol=2e-5)
    assert_trees_close(actual, other, atol=2e-6)
    # The first layer's running mean: 0.9 * 0 + 0.1 * the mean over the batch, in numpy.
    kernel = state.variables["params"]["Conv_0"]["kernel"]
    outputs = reference.conv(reference.standardize(plain.images), kernel, same=True)
    statistics = actual.variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * outputs.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * outputs.var((0, 1, 2)), rtol=1e-5)
    assert np.abs(statistics["mean"]).max() > 1e-3


def test_batch_norm_refuses_microbatches():
    with pytest.raises(ValueError, match="batch normalization needs the whole batch at once"):
        make_train_step(classifier_of("convnet5", batch_norm=True), TX, microbatch_size=4)
