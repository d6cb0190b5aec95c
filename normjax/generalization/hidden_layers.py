"""What each layer of a network reads, and how margins change with it.

The representation of a hidden layer is what the next layer reads. It is found in the network's
computation: the operation that combines a layer's kernel with data has the representation as its
other operand. Names of modules play no role.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from normjax import losses
from normjax.structure import NetworkStructure
from normjax.types import ApplyFn, Array, Params


class HiddenLayers(NamedTuple):
    """The representations of n examples; layer 0 reads the network's inputs.

    Attributes:
      logits: [n, K].
      inputs: what each layer reads, `[n, size]` per layer.
      gradient_norms: for each layer, the L2 norm of the gradient of each example's margin with
        respect to what the layer reads, `[n]`.
    """

    logits: np.ndarray
    inputs: list[np.ndarray]
    gradient_norms: list[np.ndarray]


def hidden_layers(
    apply_fn: ApplyFn,
    structure: NetworkStructure,
    params: Params,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
) -> HiddenLayers:
    """Compute representations, and gradients of the margins `f_y - max_{k != y} f_k`.

    Args:
      apply_fn: the network.
      structure: its structure; each kernel is used once.
      params: its parameters.
      x: n inputs.
      labels: n integers.
      batch_size: examples at a time.

    Raises:
      ValueError: what a layer reads cannot be found, in one line.
    """
    of_batch = partial(_of_batch, apply_fn, structure, params)
    logits, inputs, norms = _in_batches(of_batch, (np.asarray(x), labels), batch_size)
    return HiddenLayers(logits, [h.reshape(len(h), -1) for h in inputs], norms)


def logits_in_batches(
    apply_fn: ApplyFn, params: Params, x: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return the logits `[n, K]` of n inputs."""
    return _in_batches(partial(_logits, apply_fn, params), (np.asarray(x),), batch_size)


def _in_batches(
    function: Callable[..., Any], arrays: tuple[np.ndarray, ...], batch_size: int
) -> Any:
    """Apply a function to batches of one size; return its results, concatenated, as one tree."""
    num, parts = len(arrays[0]), []
    for start in range(0, num, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), num - 1)
        parts.append(jax.device_get(function(*(array[index] for array in arrays))))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:num], *parts)


@partial(jax.jit, static_argnums=0)
def _logits(apply_fn, params, x):
    with jax.default_matmul_precision("highest"):
        return apply_fn(params, x)


@partial(jax.jit, static_argnums=(0, 1))
def _of_batch(apply_fn, structure, params, x, labels):
    """Return logits, what each layer reads, and the norms of the margins' gradients."""
    shapes = jax.eval_shape(partial(read_layers, apply_fn, structure), params, x)[1]

    def total_margin(shifts):
        logits, inputs = read_layers(apply_fn, structure, params, x, shifts)
        return jnp.sum(losses.margins(logits, labels)), (logits, inputs)

    with jax.default_matmul_precision("highest"):
        zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        gradients, (logits, inputs) = jax.grad(total_margin, has_aux=True)(zeros)
    norms = [jnp.linalg.norm(g.reshape(len(g), -1), axis=1) for g in gradients]
    return logits, inputs, norms


def read_layers(
    apply_fn: ApplyFn,
    structure: NetworkStructure,
    params: Params,
    x: Array,
    shifts: Sequence[Array] | None = None,
) -> tuple[Array, list[Array]]:
    """Return the logits, and what each layer reads, in order of application.

    Args:
      apply_fn: the network.
      structure: its structure; each kernel is used once.
      params: its parameters.
      x: inputs.
      shifts: added to what each layer reads, if given.

    Raises:
      ValueError: what a layer reads cannot be found, in one line.
    """
    leaves, treedef = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda leaves, x: apply_fn(jax.tree.unflatten(treedef, leaves), x))(
        leaves, x
    )
    layers = {matrix.kernel.number: layer for layer, matrix in enumerate(structure.matrices)}
    values = [
        _Value(leaf, frozenset([layers[i]]) if i in layers else frozenset(), is_data=False)
        for i, leaf in enumerate(leaves)
    ]
    reader = _Reader(structure, shifts)
    (logits,) = reader.run(closed, [*values, _Value(x, frozenset(), is_data=True)])
    missing = [m.path for k, m in enumerate(structure.matrices) if k not in reader.inputs]
    if missing:
        raise ValueError(f"what layer {missing[0]!r} reads could not be found")
    return logits.array, [reader.inputs[layer] for layer in range(len(structure.matrices))]


class _Value(NamedTuple):
    """A value of the computation, with the layers from whose kernels it is made."""

    array: Any
    layers: frozenset[int]
    is_data: bool


class _Reader:
    """Evaluates a jaxpr; collects what each layer reads, and shifts it."""

    def __init__(self, structure: NetworkStructure, shifts: Sequence[Array] | None) -> None:
        self.structure = structure
        self.shifts = shifts
        self.inputs: dict[int, Array] = {}

    def run(self, jaxpr: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
        """Return the outputs of a jaxpr."""
        plain = jaxpr.jaxpr
        consts = [_Value(const, frozenset(), is_data=False) for const in jaxpr.consts]
        known: dict[Any, _Value] = dict(
            zip([*plain.constvars, *plain.invars], [*consts, *arguments], strict=True)
        )

        def read(variable: Any) -> _Value:
            if isinstance(variable, Literal):
                return _Value(variable.val, frozenset(), is_data=False)
            return known[variable]

        for eqn in plain.eqns:
            outputs = self._apply(plain, eqn, list(map(read, eqn.invars)))
            known.update(zip(eqn.outvars, outputs, strict=True))
        return list(map(read, plain.outvars))

    def _apply(self, jaxpr: Jaxpr, eqn: Any, values: list[_Value]) -> list[_Value]:
        layers = frozenset[int]().union(*(value.layers for value in values))
        data = [i for i, value in enumerate(values) if value.is_data]
        if layers and data:
            if len(layers) > 1 or len(data) > 1:
                body = _called(eqn.params)
                if body is None:
                    names = ", ".join(repr(self.structure.layers[k]) for k in sorted(layers))
                    raise ValueError(
                        f"what layers {names} read could not be found: {eqn.primitive.name} "
                        "combines them with data"
                    )
                return self.run(body, values)
            (layer,), (place,) = layers, data
            values[place] = self._note(layer, values[place])
            layers = frozenset()
        outputs = _evaluate(jaxpr, eqn, [value.array for value in values])
        return [_Value(output, layers, bool(data)) for output in outputs]

    def _note(self, layer: int, value: _Value) -> _Value:
        """Note what a layer reads, and shift it."""
        if layer in self.inputs or not jnp.issubdtype(value.array.dtype, jnp.floating):
            path = self.structure.layers[layer]
            raise ValueError(f"layer {path!r} is applied twice, or does not read real numbers")
        self.inputs[layer] = value.array
        if self.shifts is None:
            return value
        return value._replace(array=value.array + self.shifts[layer])


def _called(params: Mapping[str, Any]) -> ClosedJaxpr | None:
    """Return the function that an operation calls, or None."""
    for name in ("jaxpr", "call_jaxpr"):
        body = params.get(name)
        if isinstance(body, Jaxpr):
            return ClosedJaxpr(body, ())
        if isinstance(body, ClosedJaxpr):
            return body
    return None


def _evaluate(jaxpr: Jaxpr, eqn: Any, arrays: list[Any]) -> list[Any]:
    """Return the outputs of one operation of a jaxpr."""
    given = {v: x for v, x in zip(eqn.invars, arrays, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=[*given], outvars=eqn.outvars, eqns=[eqn])
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())
