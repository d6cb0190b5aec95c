"""Any Flax classifier as pure functions of its variables. Only this module knows Linen and NNX."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from normjax.files import one_line
from normjax.structure import NetworkStructure
from normjax.tracing.trace import trace_structure
from normjax.types import Array

Model = nn.Module | Callable[..., Any]
"""A network: a Linen module, or a function that makes one with fresh parameters.

The function takes no arguments and returns a Linen module, or it takes `rngs` (an `nnx.Rngs`) and
returns an NNX module. A class is such a function.
"""

Variables = Mapping[str, Any]
"""`{"params": ...}`, which the optimizer updates, and other trees, such as "batch_stats"."""

_NEEDED = "a Linen module, or a function that makes a Linen or an NNX module, is needed"
_TRAINING = {  # keywords of `__call__` and their values in training
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Classifier(NamedTuple):
    """A network as pure functions of its variables.

    Attributes:
      init: (key, initial standard deviation or None) -> variables.
      train_apply: (variables, images, mask bool [N], key) -> (logits, variables except "params"),
        in training mode. The mask is False for images to exclude from statistics.
      apply: (variables, images float [N, H, W, C]) -> logits [N, K], in evaluation mode.
      shapes: the shape and dtype of each variable.
      structure: the structure of `apply`.
      tied: "refuse" or "keep", as in `normalize_params`.
      module: the Linen module; None for NNX.
    """

    init: Callable[..., Variables]
    train_apply: Callable[..., tuple[Array, Variables]]
    apply: Callable[..., Array]
    shapes: Variables
    structure: NetworkStructure
    tied: str
    module: nn.Module | None

    @property
    def has_state(self) -> bool:
        """Whether training updates variables other than the parameters."""
        return self.shapes.keys() != {"params"}


def make_classifier(
    model: Model, image_shape: Sequence[int], num_classes: int, tied: str = "refuse"
) -> Classifier:
    """Check by its shapes that a network can be trained, and trace its structure.

    In training, `__call__` gets its mode keywords (`train`, `training`, `is_training`,
    `deterministic`, `use_running_average`) and, if it has one, `mask`; an NNX module is switched by
    `train()` and `eval()`. Dropout draws from the stream "dropout".

    Initial standard deviations are passed to the module's field `init_std`. Without such a field,
    each parameter of two or more axes is drawn from N(0, std^2), and the others (biases, scales of
    batch normalization) keep their initialization.

    Args:
      model: the network.
      image_shape: (H, W, C).
      num_classes: K.
      tied: "keep" leaves layers that cannot be normalized on their own as they are.

    Raises:
      ValueError: one line that states the problem.
    """
    name = f"model {model_name(model)}"
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    mask, key = jax.ShapeDtypeStruct((2,), jnp.bool), jax.random.key(0)
    try:
        functions = _make_functions(model, image_shape)
        init, train_apply, apply, module = functions
        shapes = jax.eval_shape(init, key, None)
        logits = jax.eval_shape(apply, shapes, images)
        _check_shapes(shapes, logits, (2, num_classes))
        _, state = jax.eval_shape(train_apply, shapes, images, mask, key)
        if _kinds({**shapes, **state}) != _kinds(shapes):
            raise ValueError("training changes the shapes or dtypes of its variables")
        structure = trace_structure(apply, shapes, images)
    except Exception as error:  # user code may raise anything
        raise ValueError(f"{name}: {one_line(error)}") from error
    if not structure.is_certified and not (tied == "keep" and structure.matrices):
        problems = one_line("; ".join(structure.problems) or "it has none")
        hint = "; --tied=keep normalizes the others" if structure.matrices else ""
        raise ValueError(f"{name}: not all of its layers can be normalized: {problems}{hint}")
    return Classifier(init, train_apply, apply, shapes, structure, tied, module)


def with_fields(classifier: Classifier, image_shape: Sequence[int], **fields: Any) -> Classifier:
    """Return the same network, computed differently: fields of its Linen module are replaced."""
    assert classifier.module is not None
    module = classifier.module.clone(**fields)
    _, train_apply, apply = _linen_functions(module, image_shape)
    return classifier._replace(train_apply=train_apply, apply=apply, module=module)


def model_name(model: Model) -> str:
    """Return the name of a network's class, or of the function that makes it."""
    return getattr(getattr(model, "func", model), "__name__", type(model).__name__)


def import_model(reference: str) -> Model:
    """Return the network that `package.module:attribute` names.

    Raises:
      ValueError: the module cannot be imported, or has no such attribute; one line.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"--model={reference}: module {module_name!r} cannot be imported: {one_line(error)}"
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ValueError(
            f"--model={reference}: module {module_name!r} has no attribute {attribute!r}"
        ) from None


def leaf_names(variables: Variables) -> list[str]:
    """Return a name for each leaf, "Dense_0/kernel" or "batch_stats/BatchNorm_0/mean"."""
    paths = [path for path, _ in jax.tree.leaves_with_path(variables)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return [name.removeprefix("params/") for name in names]


def leaf_shapes(classifier: Classifier) -> dict[str, list[int]]:
    """Return the shape of each leaf by name, as in run.json."""
    leaves = jax.tree.leaves(classifier.shapes)
    names = leaf_names(classifier.shapes)
    return {name: list(leaf.shape) for name, leaf in zip(names, leaves, strict=True)}


def _check_shapes(variables: Variables, logits: Any, expected: tuple[int, int]) -> None:
    """Raise ValueError unless parameters and logits can be trained."""
    if "params" not in variables:
        raise ValueError("it has no parameters")
    leaves = jax.tree.leaves(variables["params"])
    names = leaf_names(variables)
    if len(set(names)) < len(names):  # as in {"a": {"b": x}, "a/b": y}
        raise ValueError(f"two of its variables have the name {max(names, key=names.count)!r}")
    if any(leaf.dtype != jnp.float32 for leaf in leaves):
        raise ValueError("its parameters must be float32")
    if not hasattr(logits, "shape"):
        raise ValueError(f"it returns a {type(logits).__name__}, not the logits alone")
    if logits.shape != expected or logits.dtype != jnp.float32:
        raise ValueError(
            f"its logits have shape {logits.shape} and dtype {logits.dtype} for 2 images, not "
            f"{expected} and float32"
        )


def _kinds(variables: Variables) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(variables))


def _make_functions(model: Model, image_shape: Sequence[int]) -> tuple[Any, ...]:
    """Return `init`, `train_apply`, `apply` and `module` of a `Classifier`."""
    if isinstance(model, nnx.Module) or not callable(model):
        raise ValueError(f"{_NEEDED}, not {type(model).__name__}")
    if not isinstance(model, nn.Module):
        function = getattr(model, "func", model)  # of a functools.partial
        function = function.__init__ if isinstance(function, type) else function
        if "rngs" in inspect.signature(function).parameters:
            return *_nnx_functions(model), None
        model = model()
        if not isinstance(model, nn.Module):
            raise ValueError(f"{_NEEDED}; it returned {type(model).__name__}")
    return *_linen_functions(model, image_shape), model


def _linen_functions(module: nn.Module, image_shape: Sequence[int]) -> tuple[Any, ...]:
    """Return `init`, `train_apply` and `apply` of a Linen module."""
    training, evaluation, masking = _keywords(type(module))

    def init(key, init_std=None):
        own = init_std is not None and hasattr(module, "init_std")
        scaled = module.clone(init_std=init_std) if own else module
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = nn.unbox(scaled.init(key, images, **evaluation))
        return variables if own else _draw_kernels(variables, init_std, key)

    def train_apply(variables, images, mask, key):
        state = [name for name in variables if name != "params"]
        logits, updated = module.apply(
            variables,
            images,
            **training,
            **masking(mask),
            rngs={"dropout": key},
            mutable=state,
        )
        return logits, dict(updated)

    def apply(variables, images):
        return module.apply(variables, images, **evaluation)

    return init, train_apply, apply


def _nnx_functions(make: Callable[..., nnx.Module]) -> tuple[Any, ...]:
    """Return `init`, `train_apply` and `apply` of the NNX modules that a function makes."""

    def split(module):
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    def make_module(key):
        module = make(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ValueError(f"{_NEEDED}; with rngs it returned {type(module).__name__}")
        return module

    module = nnx.eval_shape(make_module, jax.random.key(0))
    graph, *states = split(module)
    training, evaluation, masking = _keywords(type(module))

    def variables_of(params, _, state):
        trees = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(state)}
        return {name: tree for name, tree in trees.items() if tree}

    def module_of(variables, key):
        noise = [
            jax.random.split(jax.random.fold_in(key, i), leaf.shape)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(jax.tree.leaves(states[1]))
        ]
        parts = (variables["params"], noise, variables.get("batch_stats", {}))
        return nnx.merge(
            graph,
            *(
                jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(part))
                for state, part in zip(states, parts, strict=True)
            ),
        )

    def init(key, init_std=None):
        _, *parts = split(make_module(key))
        return _draw_kernels(variables_of(*parts), init_std, key)

    def train_apply(variables, images, mask, key):
        module = module_of(variables, key)
        module.train()
        logits = module(images, **training, **masking(mask))
        _, *parts = split(module)
        updated = variables_of(*parts)
        return logits, {name: tree for name, tree in updated.items() if name != "params"}

    def apply(variables, images):
        module = module_of(variables, jax.random.key(0))
        module.eval()
        return module(images, **evaluation)

    return init, train_apply, apply


def _keywords(module_class: type) -> tuple[dict[str, Any], dict[str, Any], Callable]:
    """Return a module's call keywords in training, in evaluation and, as a function, for a mask."""
    names = inspect.signature(module_class.__call__).parameters
    training = {name: value for name, value in _TRAINING.items() if name in names}
    evaluation = {name: not value for name, value in training.items()}
    return training, evaluation, lambda mask: {"mask": mask} if "mask" in names else {}


def _draw_kernels(variables: Variables, init_std: Any, key: Array) -> Variables:
    """Draw each parameter of two or more axes from N(0, init_std^2); None changes nothing."""
    if init_std is None:
        return variables
    leaves, treedef = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.fold_in(key, 0), len(leaves))
    drawn = [
        init_std * jax.random.normal(own, leaf.shape, leaf.dtype) if leaf.ndim > 1 else leaf
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return {**variables, "params": jax.tree.unflatten(treedef, drawn)}
