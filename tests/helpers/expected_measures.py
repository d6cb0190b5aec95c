"""The measures of a small 3-layer net by another path, in NumPy's float64."""

import jax
import numpy as np

from tests.helpers import reference
from tests.helpers.trained_networks import CLASSES, SHARPNESS, SIDE


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def dense_layers(params):
    """The layers of the net as matrices [outputs, inputs] and biases, by columns of float64."""
    matrices, biases, side = [], [], SIDE
    for name in ("Conv_0", "Conv_1"):
        kernel = params[name]["kernel"]
        shape = (side, side, kernel.shape[2])
        basis = np.eye(np.prod(shape)).reshape(-1, *shape)
        matrices.append(reference.conv(basis, kernel).reshape(len(basis), -1).T)
        side -= kernel.shape[0] - 1
        bias = params[name].get("bias", np.zeros(kernel.shape[3]))
        biases.append(np.tile(bias, side * side))
    return [*matrices, params["Dense_0"]["kernel"].T], [*biases, np.zeros(CLASSES)]


def path_sums(params, p):
    """Sum over paths of prod |w|^p, by class: the dense matrices of |w|^p multiplied out."""
    sums = np.ones(SIDE * SIDE * 3)
    for matrix, bias in zip(*dense_layers(params), strict=True):
        sums = np.abs(matrix) ** p @ sums + np.abs(bias) ** p
    return sums


def layers_of(params):
    """(kernel, joint bias or none) of each layer: the first bias belongs to its layer."""
    return [
        (params["Conv_0"]["kernel"], params["Conv_0"]["bias"]),
        (params["Conv_1"]["kernel"], None),
        (params["Dense_0"]["kernel"], None),
    ]


def incoming(kernel, bias):
    """The weights into each unit, [units, weights]."""
    rows = kernel.reshape(-1, kernel.shape[-1]).T
    return rows if bias is None else np.column_stack([rows, bias])


def spectral(kernel, bias, grid=32):
    """Largest singular value of the circular convolution, or of the matrix."""
    if kernel.ndim == 2:
        return np.linalg.norm(kernel, 2)
    transformed = np.fft.fft2(kernel, s=(grid, grid), axes=(0, 1))
    if bias is not None:
        row = np.broadcast_to(bias, (grid, grid, 1, len(bias)))
        transformed = np.concatenate([transformed, row], axis=2)
    return np.linalg.svd(transformed, compute_uv=False).max()


def margins_of(logits, labels):
    """By a loop over examples, label and all."""
    return np.array(
        [
            z[y] - max(np.delete(z, y))
            for z, y in zip(logits.astype(np.float64), labels, strict=True)
        ]
    )


def expected_measures(network):
    """All measures once more, in numpy float64."""
    params, start = float64(network.params), float64(network.initial_params)
    change = jax.tree.map(lambda w, other: w - other, params, start)
    units = [incoming(*layer) for layer in layers_of(params)]
    moved = [incoming(*layer) for layer in layers_of(change)]
    fro = np.array([np.sqrt((rows**2).sum()) for rows in units])
    spec = np.array([spectral(*layer) for layer in layers_of(params)])
    rows_moved = np.array([np.sqrt((rows**2).sum(1)).sum() for rows in moved])
    margins = margins_of(network.logits, network.labels)
    gamma = np.percentile(margins, 10)
    logits = network.logits.astype(np.float64)
    matrix = np.array([np.linalg.norm(rows, 2) for rows in units])
    complexity = spec.prod() * ((rows_moved / spec) ** (2 / 3)).sum() ** 1.5
    moved_fro = np.array([np.sqrt((rows**2).sum()) for rows in moved])
    weights, distances = (np.concatenate([rows.ravel() for rows in w]) for w in (units, moved))
    return {
        "log_product_frobenius": np.log(fro.prod()),
        "log_sum_frobenius": np.log(3 * (fro**2).prod() ** (1 / 3)),
        "log_product_spectral": np.log(spec.prod()),
        "log_sum_spectral": np.log(3 * (spec**2).prod() ** (1 / 3)),
        "log_product_matrix_spectral": np.log(matrix.prod()),
        "log_product_max_l1": np.log(np.prod([np.abs(rows).sum(1).max() for rows in units])),
        "log_l1_path_norm": np.log(path_sums(params, 1).sum()),
        "log_max_path_norm": np.log(path_sums(params, 1).max()),
        "log_l2_path_norm": np.log(np.sqrt(path_sums(params, 2).sum())),
        "sum_of_stable_ranks": (fro**2 / spec**2).sum(),
        "sum_of_matrix_stable_ranks": (fro**2 / matrix**2).sum(),
        "log_product_stable_ranks": np.log((fro**2 / spec**2).prod()),
        "parameter_norm": np.sqrt((weights**2).sum()),
        "frobenius_distance": np.sqrt((distances**2).sum()),
        "spectral_distance": np.linalg.norm([spectral(*layer) for layer in layers_of(change)]),
        "matrix_spectral_distance": np.linalg.norm([np.linalg.norm(rows, 2) for rows in moved]),
        "inverse_margin": gamma**-2,
        "log_frobenius_over_margin": np.log(fro.prod() / gamma),
        "log_sum_frobenius_over_margin": np.log(3 * (fro.prod() / gamma) ** (2 / 3)),
        "log_spectral_over_margin": np.log(spec.prod() / gamma),
        "log_sum_spectral_over_margin": np.log(3 * (spec.prod() / gamma) ** (2 / 3)),
        "log_matrix_spectral_over_margin": np.log(matrix.prod() / gamma),
        "log_path_norm_over_margin": np.log(np.sqrt(path_sums(params, 2).sum()) / gamma),
        **{
            f"log_{name}_{which}": np.log(
                (norms.prod() / gamma) ** 2 * (others**2 / norms**2).sum()
            )
            for name, norms in (("spectral", spec), ("matrix_spectral", matrix))
            for which, others in (("init", moved_fro), ("orig", fro))
        },
        "log_spectral_complexity_over_margin": np.log(complexity / gamma),
        "log_inverse_min_margin": np.inf,  # some examples are misclassified
        "negative_margin_area": -margins.mean() / fro.prod(),
        "normalized_train_loss": reference.excess(logits / fro.prod(), network.labels).mean(),
        "train_loss": reference.cross_entropy(logits, network.labels).mean(),
        "log_fisher_rao_norm": np.log(3 * np.sqrt(fisher_rao(logits, None))),
        "log_empirical_fisher_rao_norm": np.log(3 * np.sqrt(fisher_rao(logits, network.labels))),
        **expected_flatness(weights, distances, len(logits)),
    }


def fisher_rao(logits, labels):
    """By loops over examples and labels: the mean of (<p, f> - f_y)^2."""
    total = 0
    for i, f in enumerate(logits):
        p = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
        for y in range(len(f)):
            chance = p[y] if labels is None else float(y == labels[i])
            total += chance * (p @ f - f[y]) ** 2
    return total / len(logits)


def expected_flatness(w, moved, num_train):
    """The bounds of Jiang et al. 2020, eq. 48 to 62, for the sizes of noise and ascent given."""
    sigma, relative_sigma, alpha, relative_alpha, rise, adaptive_rise = SHARPNESS
    square = {"init": (moved**2).sum(), "orig": (w**2).sum()}
    found = {
        "pac_bayes_flatness": np.log(1 / sigma**2),
        "pac_bayes_magnitude_flatness": np.log(1 / relative_sigma**2),
        "sharpness_flatness": np.log(1 / alpha**2),
        "sharpness_magnitude_flatness": np.log(1 / relative_alpha**2),
        "gradient_sharpness": rise,
        "adaptive_sharpness": adaptive_rise,
    }
    for which, size in square.items():
        found[f"pac_bayes_{which}"] = size / (4 * sigma**2) + np.log(num_train / sigma) + 10
        found[f"sharpness_{which}"] = np.log(size / alpha**2)
        total = 0
        for change in moved:
            above = 1e-6 + (relative_sigma**2 + 1) * size / len(w)
            total += np.log(above / (1e-6 + relative_sigma**2 * change**2)) / 4
        found[f"pac_bayes_magnitude_{which}"] = total + np.log(num_train / relative_sigma) + 10
        total = 0
        for change in moved:
            above = 1e-6 + (relative_alpha**2 + 4 * np.log(2 * len(w) / 0.05)) * size / len(w)
            total += np.log(above / (1e-6 + relative_alpha**2 * change**2)) / 4
        found[f"sharpness_magnitude_{which}"] = total
    return found
