"""What is measured of each network of the zoo, and what must hold."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import normjax
from normjax.structure import NetworkStructure
from tests.zoo.network import Layer, Network, is_floating

LARGEST_ERROR = {"float32": 2e-6, "bfloat16": 0.02}


class Result(NamedTuple):
    """The measurements of one network.

    Attributes:
      network: the network.
      structure: what `trace_structure` returned.
      milliseconds: the CPU time of the shorter of two calls.
      error: of eq. 2 after normalization, relative to the largest output.
      float64_error: after scaling each layer by a power of 3 in float64.
      failures: what does not hold, one line each.
    """

    network: Network
    structure: NetworkStructure
    milliseconds: float
    error: float | None
    float64_error: float | None
    failures: list[str]


def measure(network: Network, normalize: bool = True) -> Result:
    """Trace a network; check its structure against the expectation and against its outputs.

    Args:
      network: the network.
      normalize: whether to normalize it, too, which takes seconds to compile.
    """
    with as_usual():
        apply_fn, params, x = network.make()
    # The first call of a library's functions also traces these; the second is typical.
    structure, milliseconds = trace(network, apply_fn, params, x, calls=1 + normalize)
    failures = compare(network, structure)
    if structure.problems:
        failures += compare_refusal(structure, params)
    error = float64_error = None
    if structure.matrices:
        evaluate = evaluator(network, apply_fn, params)
        output = evaluate(params, x)
        if not np.isfinite(output).all() or (output != 0).mean() < 0.4:
            failures.append("the zoo's own error: outputs are not finite, or mostly zeros")
        scaled, factor = scale_layers(structure, params, 2)
        if not np.array_equal(evaluate(scaled, x) * factor, output):
            failures.append("scaling the layers by powers of two changes bits")
        if normalize:
            error, product, more = normalization_error(network, structure, evaluate, params, x)
            float64_error = error_in_float64(network, structure, apply_fn, params, x)
            failures += more
            if network.layers:
                failures += compare_products(network, structure, params, product)
            if float64_error is not None and not float64_error < 1e-12:
                failures.append(f"scaling the layers in float64: error {float64_error:.1e}")
    return Result(network, structure, milliseconds, error, float64_error, failures)


def trace(
    network: Network, apply_fn: Any, params: Any, x: Any, calls: int
) -> tuple[NetworkStructure, float]:
    """Return the structure, and the CPU time of the shortest call in milliseconds."""
    times = []
    for _ in range(calls):
        start = time.process_time()
        with as_usual():
            structure = (network.trace or normjax.trace_structure)(apply_fn, params, x)
        times.append(1e3 * (time.process_time() - start))
    return structure, min(times)


@contextlib.contextmanager
def as_usual():
    """Let other libraries mix dtypes and ranks, which the tests' settings forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def compare(network: Network, structure: NetworkStructure) -> list[str]:
    """Compare what is certified, tied and held with the expectation."""
    failures = []
    if structure.is_certified == bool(network.refused):
        failures.append(f"certified is {structure.is_certified}")
    for leaf, reason in network.refused.items():
        found = [problem for problem in structure.problems if problem.startswith(leaf)]
        if len(found) != 1 or not (f"by {reason}" in found[0] or f"by '{reason}'" in found[0]):
            failures.append(f"{leaf} is not held or tied by {reason}: {found}")
    if len(structure.problems) != len(network.refused):
        failures.append(f"other problems: {structure.problems}")
    return failures


def compare_refusal(structure: NetworkStructure, params: Any) -> list[str]:
    """Expect that normalization refuses what is not certified, and says why (of many, a few)."""
    try:
        normjax.normalize_params(params, structure=structure)
    except ValueError as error:
        is_listed = structure.problems[0] in str(error)
        return [] if is_listed else [f"the error does not list {structure.problems[0]}"]
    return ["it is normalized although it is not certified"]


def evaluator(network: Network, apply_fn: Any, params: Any) -> Callable[[Any, Any], np.ndarray]:
    """Return the network as a function to flat float64 outputs, compiled if it is one of JAX."""
    apply_to_arrays, floating = on_arrays(apply_fn, params)
    run = apply_to_arrays if network.trace else jax.jit(apply_to_arrays)

    def evaluate(params, x):
        new = jax.tree.leaves(params)
        with as_usual(), jax.default_matmul_precision("highest"):
            outputs = run([new[i] for i in floating], x)
        return np.concatenate([np.asarray(output, np.float64).ravel() for output in outputs])

    return evaluate


def on_arrays(apply_fn: Any, params: Any) -> tuple[Callable, list[int]]:
    """Return the network as a function of its floating-point leaves, and their numbers.

    Other leaves, such as functions, are no arguments of a compiled function.
    """
    leaves, treedef = jax.tree.flatten(params)
    floating = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def apply_to_arrays(arrays, x):
        replaced = dict(zip(floating, arrays, strict=True))
        tree = [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.leaves(apply_fn(jax.tree.unflatten(treedef, tree), x))

    return apply_to_arrays, floating


def normalization_error(
    network: Network, structure: NetworkStructure, evaluate: Any, params: Any, x: Any
) -> tuple[float, float, list[str]]:
    """Return the error of eq. 2, the product of norms, and what does not hold."""
    how = {"structure": structure, "tied": "keep"}
    normalized = normjax.normalize_params(params, **how)
    product = float(normjax.product_norm(params, **how))
    output = evaluate(params, x)
    error = largest_error(product * evaluate(normalized, x), output)
    bound = LARGEST_ERROR["bfloat16" if "bfloat16" in network.name else "float32"]
    failures = []
    if not error <= bound:
        failures.append(f"normalization changes the outputs by {error:.1e}")
    norms = normjax.param_norms(normalized, **how)
    if not all(abs(float(norm) - 1) <= bound for norm in norms.values()):
        failures.append(f"normalized layers do not have norm 1: {norms}")
    return error, product, failures


def error_in_float64(
    network: Network, structure: NetworkStructure, apply_fn: Any, params: Any, x: Any
) -> float | None:
    """Return the error after scaling each layer by a power of 3; None if it computes in float32."""
    if network.trace:
        return None
    with jax.enable_x64(True):
        wide, x = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64) if is_floating(leaf) else leaf, (params, x)
        )
        apply_to_arrays, floating = on_arrays(apply_fn, wide)
        arrays = [jax.tree.leaves(wide)[i] for i in floating]
        try:
            with as_usual():
                jaxpr = str(jax.make_jaxpr(apply_to_arrays)(arrays, x))
        except TypeError:  # a recurrent cell whose state is float32
            return None
        if "f32[" in jaxpr or "bf16[" in jaxpr:
            return None
        evaluate = evaluator(network, apply_fn, wide)
        scaled, factor = scale_layers(structure, wide, 3)
        return largest_error(factor * evaluate(scaled, x), evaluate(wide, x))


def largest_error(output: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error, relative to the largest expected output."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())


def scale_layers(structure: NetworkStructure, params: Any, base: int) -> tuple[Any, float]:
    """Divide the layers by random powers of `base`; return the factor that the outputs lose, too.

    The powers are such that each leaf is multiplied by an integer power of `base`.
    """
    powers = [power for _, pairs in structure.divisors for _, power in pairs]
    step = math.lcm(*(power.denominator for power in [*powers, *structure.degrees.values()]))
    choices = np.random.default_rng(0).choice([-3, -2, -1, 1, 2, 3], len(structure.matrices))
    logs = [step * int(choice) for choice in choices]
    leaves, treedef = jax.tree.flatten(params)
    for leaf, pairs in structure.divisors:
        array = np.array(leaves[leaf.number])
        log = int(sum(power * logs[k] for k, power in pairs))
        part = slice(None) if leaf.part is None else leaf.part
        array[part] = array[part] * np.asarray(float(base) ** -log, array.dtype)
        leaves[leaf.number] = array
    matrices = zip(structure.matrices, logs, strict=True)
    total = int(sum(matrix.degree * log for matrix, log in matrices))
    return jax.tree.unflatten(treedef, leaves), float(base) ** total


def compare_products(
    network: Network, structure: NetworkStructure, params: Any, product: float
) -> list[str]:
    """Compare layers and product with those of the network whose batch norms are absorbed."""
    paths = [path.removesuffix("/value") for path, _ in structure.leaves]
    leaves = {
        path: np.asarray(leaf, np.float64)
        for path, leaf in zip(paths, jax.tree.leaves(params), strict=True)
        if is_floating(leaf)
    }
    found = [paths[matrix.kernel.number] for matrix in structure.matrices]
    if found != [layer.kernel for layer in network.layers]:
        return [f"layers {found}, not {[layer.kernel for layer in network.layers]}"]
    expected = math.prod(absorbed_norm(layer, leaves) for layer in network.layers)
    error = abs(product / expected - 1)
    return [] if error < 1e-6 else [f"the product differs from the absorbed one by {error:.1e}"]


def absorbed_norm(layer: Layer, leaves: Mapping[str, np.ndarray]) -> float:
    """Return a layer's Frobenius norm in float64, batch normalization absorbed."""
    kernel = np.moveaxis(leaves[layer.kernel], layer.outputs, -1)
    bias = leaves[layer.bias].ravel() if layer.bias else np.zeros(kernel.shape[-1])
    norm = layer.batch_norm
    if norm is not None:
        scale = leaves[norm.scale] if norm.scale else 1.0
        factor = scale / np.sqrt(leaves[norm.var] + norm.epsilon)
        kernel = kernel * factor
        bias = (bias - leaves[norm.mean]) * factor + (leaves[norm.bias] if norm.bias else 0.0)
    return math.sqrt(np.sum(kernel**2) + (np.sum(bias**2) if layer.joint else 0.0))
