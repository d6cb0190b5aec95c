"""PyTorch networks: their structure, and their state_dicts as trees of arrays.

Needs PyTorch, which `pip install normjax[torch]` installs.
"""

import copy
import importlib
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax import normalize
from normjax.structure import NetworkStructure
from normjax.tracing import trace
from normjax.tracing.aten import call, opaque
from normjax.types import Norm

try:
    torch: Any = importlib.import_module("torch")
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "normjax.torch needs PyTorch: pip install 'normjax[torch]'", name="torch"
    ) from error

Tensor = Any
"""`torch.Tensor`, which type checkers do not know without PyTorch."""

_TORCH = str(Path(torch.__file__).parent)
_PLACEMENT = {"dtype", "device", "layout", "memory_format", "pin_memory", "implicit", "sparse_grad"}


def trace_structure(module: Any, x: Any) -> NetworkStructure:
    """Read from a PyTorch network how the entries of its state_dict may be scaled.

    The module is traced by `torch.export`, not run; see `normjax.trace_structure` for what is read
    and what a certificate covers.

    Examples:
      >>> from torch import nn
      >>> import normjax.torch
      >>> module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
      >>> structure = normjax.torch.trace_structure(module, torch.zeros(1, 5))
      >>> structure.is_certified, structure.layers
      (True, ('0', '2'))

    Args:
      module: the network in evaluation mode. Parameters that share memory are one leaf, under the
        first of their names. Integer buffers are constants, and so are buffers that are not in the
        state_dict.
      x: the inputs, a tensor or a tuple of tensors; only shapes and dtypes are used. The first axis
        may be a batch.

    Returns:
      The structure, whose leaves are those of `to_arrays(module.state_dict())`.

    Raises:
      ValueError: the module is in training mode or changes its buffers, parameters overlap in
        memory, or `torch.export` cannot trace it.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(tensor, torch.Tensor) for tensor in inputs):
        raise ValueError(f"x must be a tensor or a tuple of tensors, not {type(x).__name__}")
    for name, part in module.named_modules():
        if part.training:
            raise ValueError(
                f"{f'submodule {name!r}' if name else 'the module'} is in training mode, where "
                "dropout and batch normalization depend on the batch: call module.eval() first"
            )
    tensors = _tensors(module.state_dict(keep_vars=True))
    owners = _owners(tensors)
    program = _export(module, inputs)
    _check_inputs(program, tensors)
    leaves = {name: _shape(tensors[name]) for name in owners.values()}
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return trace.trace_structure(
            partial(_apply, program, owners), leaves, [_shape(tensor) for tensor in inputs]
        )


def normalize_params(
    state_dict: Mapping[str, Any], norm: Norm = 2, *, structure: NetworkStructure, **options: Any
) -> dict[str, Any]:
    """Return a state_dict whose layers have norm 1; see `normjax.normalize_params`.

    Args:
      state_dict: the state_dict of the module whose structure is given.
      norm, structure, options: see `normjax.normalize_params`.
    """
    arrays = to_arrays(state_dict)
    arrays = normalize.normalize_params(arrays, norm, structure=structure, **options)
    return to_state_dict(arrays, state_dict)


def to_arrays(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the leaves of a state_dict as arrays, for the functions that take `structure=`.

    Tensors that share memory are one leaf, under the first of their names.

    Examples:
      >>> from torch import nn
      >>> import normjax.torch
      >>> module = nn.Linear(2, 2).eval()
      >>> structure = normjax.torch.trace_structure(module, torch.zeros(1, 2))
      >>> arrays = normjax.torch.to_arrays(module.state_dict())
      >>> list(normjax.param_norms(arrays, structure=structure))
      ['weight']

    Args:
      state_dict: the state_dict of a module.
    """
    tensors = _tensors(state_dict)
    return {name: _to_array(tensors[name]) for name in _owners(tensors).values()}


def to_state_dict(arrays: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays as a state_dict, the inverse of `to_arrays`.

    Args:
      arrays: the result of `to_arrays`, with any values.
      like: a state_dict that gives the other entries, and each tensor's device and dtype.
    """
    state_dict: Any = copy.copy(like)  # keeps the attributes that PyTorch sets on it
    tensors = _tensors(like)
    owners = _owners(tensors)
    if arrays.keys() != set(owners.values()):
        raise ValueError(f"arrays must have the leaves {sorted(set(owners.values()))}")
    new = {name: _to_tensor(arrays[name], tensors[name]) for name in owners.values()}
    state_dict.update({name: new[owner] for name, owner in owners.items()})
    return state_dict


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entries that are tensors; modules may add others."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be the result of module.state_dict(), not {type(state_dict).__name__}"
        )
    return {name: leaf for name, leaf in state_dict.items() if isinstance(leaf, torch.Tensor)}


def _owners(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each name to the first name with the same memory."""
    owners, firsts = {}, {}
    for name, tensor in tensors.items():
        place = (*_extent(tensor), tensor.shape, tensor.stride())
        owners[name] = firsts.setdefault(place, name)
    ends: dict[Any, tuple[int, str]] = {}
    for (memory, start, end, *_), name in sorted(firsts.items(), key=lambda item: item[0][:3]):
        last, other = ends.get(memory, (0, ""))
        if start < min(last, end):
            raise ValueError(
                f"{other!r} and {name!r} overlap in memory: only whole tensors of one shape can be "
                "tied"
            )
        ends[memory] = max((end, name), (last, other))
    return owners


def _extent(tensor: Tensor) -> tuple[Any, ...]:
    """Return a tensor's storage, and where the tensor starts and ends in it."""
    start = tensor.storage_offset()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage()._cdata, start, start + last + 1 if tensor.numel() else start


def _shape(tensor: Tensor) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(tensor.shape), _dtype(tensor))


def _dtype(tensor: Tensor) -> np.dtype:
    return jnp.dtype(str(tensor.dtype).removeprefix("torch."))


def _to_array(tensor: Tensor) -> np.ndarray:
    """Return a copy, made from bytes because PyTorch cannot make bfloat16 arrays."""
    flat = tensor.detach().cpu().reshape(-1).contiguous()
    return flat.view(torch.uint8).numpy().view(_dtype(tensor)).reshape(tensor.shape).copy()


def _to_tensor(array: Any, like: Tensor) -> Tensor:
    flat = np.array(array, _dtype(like)).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat).view(like.dtype).reshape(like.shape).to(like.device)


def _export(module: Any, inputs: Sequence[Tensor]) -> Any:
    """Return the module as a graph of ATen operations on the state_dict and the inputs."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's warnings about itself
        try:
            program = torch.export.export(module, tuple(inputs), strict=False)
            program = program.run_decompositions()
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"torch.export cannot trace the module: {reason[0]}") from error
    return program


def _check_inputs(program: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless an exported module depends on its state_dict as its names say."""
    if changed := sorted(program.graph_signature.buffers_to_mutate.values()):
        raise ValueError(
            f"the module changes its buffers {changed}: a network must be a function of its "
            "state_dict and its inputs"
        )
    memory = {_extent(tensor)[0]: name for name, tensor in tensors.items()}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "PARAMETER" and spec.target not in tensors:
            raise ValueError(f"the state_dict does not have the parameter {spec.target!r}")
        constant = program.constants.get(spec.target)
        if not isinstance(constant, torch.Tensor) or spec.target in tensors:
            continue
        if name := memory.get(_extent(constant)[0]):
            raise ValueError(
                f"the module uses the memory of {name!r} under another name, "
                f"{spec.target!r}, which is not in its state_dict"
            )


def _apply(program: Any, owners: Mapping[str, str], leaves: Mapping[str, Any], inputs: Any) -> Any:
    """Return the outputs of an exported program in JAX."""
    values, remaining = {}, iter(inputs)
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            value = next(remaining)
        elif spec.target in owners:
            value = leaves[owners[spec.target]]
        else:
            value = program.constants.get(spec.target)
            if isinstance(value, torch.Tensor):  # on one device; "meta" has no values
                is_known = not value.is_meta
                value = value.cpu() if is_known else opaque("constant", [], [_shape(value)])[0]
        values[spec.arg.name] = value
    for node in program.graph.nodes:
        if node.op == "get_attr":  # the branches of a control-flow operation
            values[node.name] = getattr(program.graph_module, node.target)
        elif node.op == "call_function" and node.users:
            with jax.named_scope(_scope(node)):
                values[node.name] = _call(node, values)
    outputs = (values.get(name) for name in program.graph_signature.user_outputs)
    return [_to_jax(value) for value in outputs if value is not None]


def _call(node: Any, values: Mapping[str, Any]) -> Any:
    """Return the results of an operation: in JAX, or in PyTorch if its operands are constants."""
    operands: list[Any] = [values[operand.name] for operand in node.all_input_nodes]
    results = node.meta["val"]
    is_single = not isinstance(results, list | tuple)
    if is_single and not _is_static(results):
        raise ValueError(f"{_scope(node)} depends on the values of tensors, which are not traced")
    if node.target is operator.getitem:
        return operands[0][node.args[1]]
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    if name.startswith("empty"):  # nobody reads these values
        return torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
    traced = [leaf for leaf in jax.tree.leaves(operands) if isinstance(leaf, jax.Array)]
    is_constant = not traced and isinstance(node.target, torch._ops.OpOverload)

    def argument(operand: Any) -> Any:
        value = values[operand.name]
        return value if is_constant else _to_jax(value)

    args, options = torch.fx.node.map_arg((node.args, dict(node.kwargs)), argument)
    if is_constant:
        return node.target(*args, **(options | ({"device": "cpu"} if "device" in options else {})))
    options = {key: value for key, value in options.items() if key not in _PLACEMENT}
    # Among several results, those that are not arrays are never read, or are refused above.
    shapes = [
        _shape(result) if _is_static(result) else jax.ShapeDtypeStruct((), bool)
        for result in ([results] if is_single else results)
    ]
    found = call(name, args, options, traced, shapes)
    return found[0] if is_single else found


def _is_static(result: Any) -> bool:
    """Whether a result is a tensor of known shape."""
    return isinstance(result, torch.Tensor) and all(isinstance(n, int) for n in result.shape)


def _to_jax(value: Any) -> Any:
    return jnp.asarray(_to_array(value)) if isinstance(value, torch.Tensor) else value


def _scope(node: Any) -> str:
    """Return an operation, its module and the user's line, such as `'relu' in head (net.py:12)`."""
    name = str(node.target).removeprefix("aten.")
    name = (name.rpartition(".")[0] or name).lstrip("_")
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = modules[-1] if modules else ("", "the module")
    kind = str(kind).rpartition(".")[2]
    frames = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((_TORCH, "<"))]
    line = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else kind
    return f"{name!r} in {path or kind} ({line})"
