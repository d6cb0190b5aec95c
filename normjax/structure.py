"""The structure of a network: its layers in order of application, and what scales with them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from normjax.channel_vectors import Vector
from normjax.exponents import Leaf, Number


class Layout(NamedTuple):
    """How a kernel acts, as axes of its leaf.

    Attributes:
      window: the axes of a convolution's window.
      inputs: the axes that are summed with the inputs.
      outputs: the axes of the outputs.
      groups: the outputs form this many equal groups, each with its own inputs.
    """

    window: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: int = 1


class Reads(NamedTuple):
    """Whose units a layer reads, if each of them may be rescaled alone.

    Attributes:
      layer: the number of the layer before, or None for the network's inputs.
      inner: input i comes from unit `i // inner % number of units`.
    """

    layer: int | None
    inner: int


ELEMENTWISE = Layout((), (), (), 0)
"""The layout of a learned scale, before the shape of its leaf is known."""


@dataclass(frozen=True)
class LayerMatrix:
    """The matrix `W_k` of one layer.

    The matrix is the kernel, times a factor for each output channel if batch normalization or a
    learned scale follows. The bias belongs to the matrix if it scales with this layer alone, as in
    the first layer (`[W_1, b_1]` in the paper).

    Attributes:
      path: the path of the layer's module, or of the kernel where a module has several layers.
      kernel: the kernel.
      layout: how the kernel acts; None if that could not be read.
      degree: the power of the layer's norm that multiplies the network's output.
      factor: the factor of each output channel, or None.
      offset: what is added to each output channel after the factor, or None.
      is_joint: whether the offset is part of the matrix.
      reads: whose units the layer reads; None if they may not be rescaled one by one.
    """

    path: str
    kernel: Leaf
    layout: Layout | None
    degree: Number = 1
    factor: Vector | None = None
    offset: Vector | None = None
    is_joint: bool = False
    reads: Reads | None = None

    @property
    def bias(self) -> Vector | None:
        """The offset, where it is part of the matrix."""
        return self.offset if self.is_joint else None


@dataclass(frozen=True)
class NetworkStructure:
    """How the leaves of a network may be scaled so that only the scale of its output changes.

    `trace_structure` reads it off the network's computation; `print` shows it as a certificate. It
    is hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      leaves: path and shape of every leaf of the parameter tree.
      matrices: the layers that can be normalized, in order of application.
      divisors: for each leaf that scales, `(leaf, ((layer number, power), ...))`: normalization
        divides the leaf by these powers of the layers' norms.
      tied: paths of the weights that cannot be scaled on their own.
      problems: one sentence each: what a weight is tied to or held by, and where, or why no weight
        scales the output.
      kinds: for each leaf, what it must be where the structure is used (`leaf_kind`); empty if the
        layers were found by names.
      is_traced: whether the computation was traced; otherwise the layers were found by names.
    """

    leaves: tuple[tuple[str, tuple[int, ...]], ...]
    matrices: tuple[LayerMatrix, ...]
    divisors: tuple[tuple[Leaf, tuple[tuple[int, Number], ...]], ...]
    tied: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    is_traced: bool = True
    kinds: tuple[str, ...] = ()

    @property
    def is_certified(self) -> bool:
        """Whether normalizing every layer only rescales the output, in exact arithmetic."""
        return self.is_traced and bool(self.matrices) and not self.problems

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the layers that can be normalized, in order of application."""
        return tuple(matrix.path for matrix in self.matrices)

    @property
    def degrees(self) -> dict[str, Number]:
        """The power of each layer's norm that multiplies the output; 2 for a weight used twice."""
        return {matrix.path: matrix.degree for matrix in self.matrices}

    def __str__(self) -> str:
        """Return the certificate, or what prevents it, as multi-line text."""
        product = " ".join(
            f"rho_{number}" + (f"^({matrix.degree})" if matrix.degree != 1 else "")
            for number, matrix in enumerate(self.matrices, 1)
            if matrix.degree
        )
        lines = []
        if self.problems:
            lines += ["Not certified:", *(f"  {problem}" for problem in self.problems)]
            if self.matrices:
                lines += ['With tied="keep", only these layers are normalized:']
        if self.matrices:
            claim = "" if self.problems or not self.is_traced else "Certified: "
            lines.append(f"{claim}f(W; x) = {product} f(W~; x)")
        table = [self._row(number) for number in range(len(self.matrices))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
        divided = {leaf.number for leaf, _ in self.divisors}
        same = [path for i, (path, _) in enumerate(self.leaves) if i not in divided]
        if same:
            lines.append(f"Not divided: {', '.join(same)}")
        return "\n".join(lines)

    def _row(self, number: int) -> tuple[str, str, str, str]:
        """Return what the certificate says of one layer."""
        matrix = self.matrices[number]
        shape = self.leaves[matrix.kernel.number][1]
        if matrix.kernel.part is not None:
            shape = shape[1:]
        parts = [
            text
            for text, is_there in (
                ("factor of each output", matrix.factor is not None),
                ("bias", matrix.is_joint),
            )
            if is_there
        ]
        return (
            f"rho_{number + 1}",
            matrix.path,
            _layout_text(matrix.layout, shape),
            f"with {' and '.join(parts)}" if parts else "",
        )


def leaf_kind(leaf: Any) -> str:
    """Return what a structure depends on in a leaf besides its shape; "" for functions and others.

    Floating-point arrays may have any values and precision. Python numbers are part of the traced
    program.
    """
    if isinstance(leaf, (bool, int, float, complex)) and not hasattr(leaf, "dtype"):
        return f"the number {leaf!r}"
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return ""
    return "floating point" if jnp.issubdtype(dtype, jnp.floating) else str(dtype)


def _layout_text(layout: Layout | None, shape: tuple[int, ...]) -> str:
    """Return the shape of a layer's matrix, such as "5 x 5 window, 3 -> 24"."""
    if layout is None:
        return f"{' x '.join(map(str, shape))}, layout unknown"
    inputs, outputs = (
        math.prod(shape[axis] for axis in axes) for axes in (layout.inputs, layout.outputs)
    )
    if not layout.inputs and not layout.window:
        return f"a factor for each of {outputs}"
    window = " x ".join(str(shape[axis]) for axis in layout.window)
    groups = f", {layout.groups} groups" if layout.groups > 1 else ""
    return f"{window + ' window, ' if window else ''}{inputs} -> {outputs}{groups}"
