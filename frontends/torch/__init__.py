"""The `torch` frontend: any nn.Module with example arguments, through torch.export, into primitives.

    module = lift_module(net, (x,), dynamic_shapes={"x": {0: "batch"}})

On the command line a Python callable supplies the module: `python:package.module:callable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from irlab.errors import InputError
from irlab.ir import Module
from irlab.target import Frontend, LoadRequest

if TYPE_CHECKING:
    import torch

PREFIX = "python:"


class Torch(Frontend, name="torch"):
    """Lifts what `python:package.module:callable` returns: (module, example_args[, dynamic_shapes])."""

    def accepts(self, source: str) -> bool:
        return source.startswith(PREFIX)

    def load(self, source: str, request: LoadRequest) -> Module:
        from irlab.frontends.torch.python_source import call_python

        net, args, dynamic_shapes = call_python(source.removeprefix(PREFIX))
        return lift_module(net, args, dynamic_shapes=dynamic_shapes)

    def load_object(
        self, source: object, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
    ) -> Module:
        """Lift a live module: what `irlab.load` does with one."""
        import torch

        if not isinstance(source, torch.nn.Module):
            raise InputError(
                f"a {type(source).__name__} cannot be lifted", "give a path, a hub id or a torch.nn.Module"
            )
        return lift_module(source, args, kwargs, dynamic_shapes)


def lift_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Module:
    """The IR of `module` in evaluation mode, called as module(*args, **kwargs).

    `dynamic_shapes` names the sizes that may vary, as torch.export takes it; a plain string ("batch") will do where
    torch wants a Dim. Weights are shared with `module`, not copied: do not train it while the IR is in use.
    Raises InputError where the module cannot be traced.
    """
    from irlab.frontends.torch.aten import LOWERINGS
    from irlab.frontends.torch.export import export
    from irlab.frontends.torch.lower import Lift
    from irlab.frontends.torch.tensors import weight_in_memory

    exported = export(module, args, kwargs, dynamic_shapes, frozenset(LOWERINGS))
    lift = Lift(exported, LOWERINGS, weight_in_memory(exported))
    return Module(lift.run(), type(module).__name__)
