"""How 80 equal layers are lifted for the price of one: each distinct kind of layer is traced once, the others stamped.

While the model is traced, every layer's forward is wrapped. The first call of a kind runs between two marks; later ones
become one `stamped_layer` op, which is lowered by lowering the marked ops again under the other layer's names. Layers
are of one kind if their modules, attributes and weights' types are equal, and they are called with the very same
arguments but for the hidden states. A class of layers that computes with its own number is not stamped: the
trace fails, and is begun anew without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from irlab.ir import Value

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.lower import Lift, Lowered, Lowering, Site

_LAYER_NUMBER: Final = ("layer_idx", "layer_id", "layer_number", "layer_index")
"""Attributes that hold a layer's own number, which is all that equal layers differ in."""


@cache
def register_marks() -> None:
    """Make the marks known to torch; once per process."""
    import torch

    for name, schema in {
        "enter_layer": "(Tensor x, int number) -> Tensor",
        "leave_layer": "(Tensor x, int number) -> Tensor",
        "stamped_layer": "(Tensor x, int number, int like) -> Tensor",
    }.items():
        torch.library.define(f"irlab::{name}", schema)
        torch.library.register_fake(f"irlab::{name}", lambda x, *_: torch.empty_like(x))


class Stamping:
    """The layers of one model, and how they are traced and lowered; without a model, every layer is traced."""

    def __init__(self, model: torch.nn.Module | None, config: Any) -> None:
        register_marks()
        self._layers = [] if model is None else list(_layers(model))
        self._kinds = [_kind(layer, position, config) for _, position, layer in self._layers]
        self._seen: dict[Hashable, int] = {}
        self._kept: list[object] = []
        self._refused: set[type] = set()
        self._bodies: dict[int, tuple[Any, list[Any], Any]] | None = None

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While this is open, layers are traced as the module's docstring says."""
        self._seen.clear()
        self._kept.clear()
        try:
            for number, (_, _, layer) in enumerate(self._layers):
                if type(layer) in self._refused:
                    continue
                layer.forward = self._wrapped(layer.forward, layer, number)
            yield
        finally:
            for _, _, layer in self._layers:
                layer.__dict__.pop("forward", None)

    @property
    def refused(self) -> int:
        """How many classes of layers turned out to depend on their number; after a trace fails, a new one leaves them
        unstamped."""
        return len(self._refused)

    def table(self) -> dict[str, Lowering]:
        """The lowerings of the marks."""
        return {
            "irlab.enter_layer": lambda site, x, number: x,
            "irlab.leave_layer": lambda site, x, number: x,
            "irlab.stamped_layer": self._stamp,
        }

    def _wrapped(self, forward: Callable[..., Any], layer: torch.nn.Module, number: int) -> Callable[..., Any]:
        import torch

        def traced(*args: Any, **kwargs: Any) -> Any:
            given = dict(kwargs)
            hidden, rest = (args[0], args[1:]) if args else (given.pop("hidden_states", None), ())
            if not isinstance(hidden, torch.Tensor):
                return forward(*args, **kwargs)
            key = (self._kinds[number], hidden.dtype, str(hidden.shape), _identity((rest, given)))
            if key in self._seen:
                return torch.ops.irlab.stamped_layer(hidden, number, self._seen[key])
            entered = torch.ops.irlab.enter_layer(hidden, number)
            try:
                with _without_number(layer):
                    out = forward(entered, *rest, **given) if args else forward(hidden_states=entered, **given)
            except _NumberUsed:
                self._refused.add(type(layer))
                raise
            if not isinstance(out, torch.Tensor) or out.shape != hidden.shape or out.dtype != hidden.dtype:
                return forward(*args, **kwargs)
            self._seen[key] = number
            self._kept.append((rest, given))  # so that identities stay taken
            return torch.ops.irlab.leave_layer(out, number)

        return traced

    def _stamp(self, site: Site, x: Value, number: int, like: int) -> Lowered:
        lift = site.lift
        if self._bodies is None:
            self._bodies = _marked_bodies(lift)
        enter, body, result = self._bodies[like]
        old, new = self._layers[like][0], self._layers[number][0]
        return lift.replay(body, {enter: x}, (f"{old}.", f"{new}."), result)


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, int, torch.nn.Module]]:
    """The items of the outermost module lists that have several: (path, position in the list, layer)."""
    import torch

    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and not any(map(path.startswith, inside)):
            inside.append(f"{path}.")
            for position, layer in enumerate(module):
                yield f"{path}.{position}", position, layer


def _kind(layer: torch.nn.Module, position: int, config: Any) -> Hashable:
    """Equal for layers that compute the same function of their weights and arguments."""
    import torch

    machinery = vars(torch.nn.Module()).keys() | set(_LAYER_NUMBER)
    parts: list[Hashable] = []
    for path, module in layer.named_modules():
        attributes = {k: v for k, v in vars(module).items() if k not in machinery}
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        shapes = tuple((name, tuple(t.shape), str(t.dtype)) for name, t in tensors)
        parts.append((path, type(module), _identity(attributes), shapes))
    # Models also look up what a layer is in lists of the config ("layer_types", "no_rope_layers").
    lists = [v for _, v in sorted(vars(config).items()) if isinstance(v, (list, tuple)) and len(v) > position]
    per_layer = tuple(repr(v[position]) for v in lists if len(v) == getattr(config, "num_hidden_layers", -1))
    return (tuple(parts), per_layer)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _identity(value: Any) -> Hashable:
    """Equal for values that are the very same: tensors and objects by identity, plain values by value."""
    if isinstance(value, (tuple, list)):
        return tuple([_identity(v) for v in value])
    if isinstance(value, dict):
        return tuple([(k, _identity(v)) for k, v in value.items()])
    if isinstance(value, partial):
        return (value.func, _identity(value.args), _identity(value.keywords))
    return (type(value), value) if _is_plain(value) else id(value)


class _NumberUsed(Exception):
    """A layer computed with its own number."""


class _Unknown:
    """Stands for a layer's own number while the layer is traced: it may be passed on, but not looked at."""

    def _used(self, *_: object) -> NoReturn:
        raise _NumberUsed("a layer computes with its own number")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = _used
    __floordiv__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _used
    __hash__ = __bool__ = __index__ = __int__ = __float__ = __str__ = __format__ = _used


@contextmanager
def _without_number(layer: torch.nn.Module) -> Iterator[None]:
    """Hide a layer's own number from it, so that a layer that depends on it fails instead of being stamped."""
    taken = [(m, name, vars(m)[name]) for m in layer.modules() for name in _LAYER_NUMBER if name in vars(m)]
    try:
        for module, name, _ in taken:
            vars(module)[name] = _Unknown()
        yield
    finally:
        for module, name, number in taken:
            vars(module)[name] = number


def _marked_bodies(lift: Lift) -> dict[int, tuple[Any, list[Any], Any]]:
    """For each traced layer: the node that enters it, the nodes inside, and the node that it results in."""
    bodies: dict[int, tuple[Any, list[Any], Any]] = {}
    open_: dict[int, tuple[Any, int]] = {}
    for position, node in enumerate(lift.nodes):
        mark = str(node.target)
        if mark.startswith(("irlab.enter_layer", "irlab.leave_layer")):
            x, number = node.args
            assert isinstance(number, int)
            if mark.startswith("irlab.enter_layer"):
                open_[number] = (node, position)
            else:
                enter, start = open_[number]
                bodies[number] = (enter, lift.nodes[start + 1 : position], x)
    return bodies
