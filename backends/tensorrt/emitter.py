"""What is under construction while a graph becomes layers: scopes of tensors, names, constants.

A lowering gets an op and the emitter. `add` adds a layer and gives it, `bind` says which tensor is the result of the
op, and compares the type that TensorRT infers with the one that the IR knows, so that a wrong axis shows at once.
Layers are called after the module path of the op they come from: the builder names them in its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from irlab.backends.tensorrt.constants import ConstantStore
from irlab.backends.tensorrt.library import ILayer, ITensor, load
from irlab.backends.tensorrt.numbers import trt_type
from irlab.backends.tensorrt.sizes import LayerSizes
from irlab.errors import LegalityError
from irlab.ir import Graph, Op, Return, Value, Weight
from irlab.ops import prim
from irlab.types import DType, TensorType
from irlab.weights import WeightSymbol, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.tensorrt.log import BuilderLog

Lowering: TypeAlias = Callable[[Any, "Emitter"], None]
"""Adds the layers of one op and binds its results."""


@dataclass
class Scope:
    """The tensors of the network, or of one branch of a conditional."""

    conditional: Any = None
    values: dict[Value, ITensor] = field(default_factory=dict)
    memo: dict[object, ITensor] = field(default_factory=dict)


class Emitter:
    """Adds layers to `network` while lowerings walk a graph. `constants` owns the weights it refers to."""

    def __init__(
        self, network: Any, lowerings: dict[type[Op], Lowering], constants: ConstantStore, log: BuilderLog
    ) -> None:
        self.network = network
        self.constants = constants
        self.sizes = LayerSizes(self)
        self.low_bit: dict[str, str] = {}
        """The type in which each encoded weight is stored, by the weight's name."""
        self.weight_arrays: dict[str, np.ndarray] = {}
        """The array behind each constant, by the name of its layer."""
        self.buffers: dict[Value, ITensor] = {}
        """The inputs of the graph that are caches of fixed length in the network, with their tensors."""
        self.buffers_written: dict[Value, ITensor] = {}
        """Each of them with its new rows in it."""
        self._lowerings = lowerings
        self._log = log
        self._scopes = [Scope()]
        self._names: set[str] = set()
        self._op: Op | None = None

    def __enter__(self) -> Emitter:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of every TensorRT object: the emitter is part of a cycle, which they must not be (see log.py)."""
        self.network = None
        self._scopes = []
        self.buffers.clear()
        self.buffers_written.clear()

    # Layers

    def add(self, kind: str, *arguments: Any) -> ILayer:
        """The layer that `INetworkDefinition.add_<kind>(*arguments)` makes, named after the op being lowered.
        Raises LegalityError, with TensorRT's words, where it makes none."""
        try:
            layer = getattr(self.network, f"add_{kind}")(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self.refused(kind, str(error)) from error
        if layer is None:
            raise self.refused(kind)
        return self.named(layer, kind)

    def named(self, layer: ILayer, kind: str) -> ILayer:
        """`layer`, called after the op being lowered."""
        layer.name = self.unique(kind)
        if self._op is not None:
            layer.metadata = location(self._op)
        return layer

    def tensor(self, kind: str, *arguments: Any) -> ITensor:
        """The output of the layer that `add` makes."""
        return self.add(kind, *arguments).get_output(0)

    def refused(self, kind: str, reason: str = "") -> LegalityError:
        """The error for a layer that TensorRT does not make."""
        where = location(self._op) if self._op is not None else "the graph"
        reason = reason.splitlines()[0] if reason else self._log.last or "no reason given"
        return LegalityError(f"TensorRT refuses the {kind} of {where}: {reason}")

    def unique(self, kind: str) -> str:
        """A name for a layer of this kind, after the op being lowered."""
        path = self._op.loc.path if self._op is not None and self._op.loc is not None else ""
        stem = f"{path or 'graph'}/{self._op.opname.split('.')[-1] if self._op is not None else 'size'}.{kind}"
        return self._free(stem)

    def _free(self, stem: str) -> str:
        candidate, count = stem, 1
        while candidate in self._names:
            candidate, count = f"{stem}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    # Values

    def __getitem__(self, value: Value) -> ITensor:
        """The tensor of a value that has been lowered."""
        found = self._carried(lambda scope: scope.values.get(value), lambda scope, t: scope.values.update({value: t}))
        if found is not None:
            return found
        if isinstance(value.op, Weight):
            return self.weight(value.op.symbol)
        raise LegalityError(f"a value of {value.op.opname if value.op else 'another graph'} is read before it is made")

    def bind(self, value: Value, tensor: ITensor) -> None:
        """Let `value` be `tensor`. Raises LegalityError where TensorRT sees another type."""
        wanted, shape = value.type, tuple(tensor.shape)
        known = len(shape) == wanted.rank and all(
            n < 0 or not isinstance(d, int) or n == d for n, d in zip(shape, wanted.shape)
        )
        if not known or tensor.dtype != trt_type(wanted.dtype):
            where = location(value.op) if value.op is not None else f"input '{value.name}'"
            seen = self._log.last if len(shape) != wanted.rank else ""
            raise LegalityError(
                f"{where} is {wanted}, TensorRT sees {str(tensor.dtype).removeprefix('DataType.')}{list(shape)}{seen}"
            )
        self._scopes[-1].values[value] = tensor

    def result(self, op: Op, kind: str, *arguments: Any) -> ILayer:
        """Add a layer whose outputs are the results of `op`."""
        layer = self.add(kind, *arguments)
        for i, value in enumerate(op.results):
            self.bind(value, layer.get_output(i))
        return layer

    def aligned(self, *values: Value) -> list[ITensor]:
        """Tensors of one rank, with sizes of 1 in front, as TensorRT's broadcasting needs them."""
        rank = max(value.type.rank for value in values)
        return [self.widened(value, rank) for value in values]

    def widened(self, value: Value, rank: int) -> ITensor:
        """The tensor of `value` with sizes of 1 in front, up to `rank`."""
        if isinstance(value.op, prim.Constant) and all(d == 1 for d in value.type.shape):
            return self.number(value.op.value, value.type.dtype, rank)
        return self.unsqueezed(self[value], range(rank - value.type.rank))

    def unsqueezed(self, tensor: ITensor, axes: range) -> ITensor:
        """`tensor` with sizes of 1 at `axes` of the result."""
        if not len(axes):
            return tensor
        return self.tensor("unsqueeze", tensor, self.ints(*axes))

    def cast(self, tensor: ITensor, dtype: DType) -> ITensor:
        """`tensor` in another dtype."""
        wanted = trt_type(dtype)
        return tensor if tensor.dtype == wanted else self.tensor("cast", tensor, wanted)

    # Constants: made in each scope that reads them, over one array

    def constant(self, array: np.ndarray, shape: tuple[int, ...], data_type: Any, name: str = "") -> ITensor:
        """A constant that refers to `array`, whose memory holds `shape` numbers of `data_type`; `name`: of a weight."""
        import math

        weights = load().Weights(data_type, array.ctypes.data, math.prod(shape))
        layer = self.add("constant", shape, weights)
        if name:
            layer.name = self._free(name)
        self.weight_arrays[layer.name] = array
        return layer.get_output(0)

    def array(self, array: np.ndarray, dtype: DType) -> ITensor:
        """A small constant of these numbers; equal ones are stored once."""
        key = (str(dtype), array.shape, array.tobytes())
        kept = self.constants.once(key, lambda: array)
        return self.local(key, lambda: self.constant(kept, array.shape, trt_type(dtype)))

    def ints(self, *numbers: int) -> ITensor:
        """An i64 vector."""
        import numpy as np

        from irlab.types import i64

        return self.array(np.array(numbers, np.int64), i64)

    def number(self, number: float | int | bool, dtype: DType, rank: int = 0) -> ITensor:
        """One number, as a tensor of `rank` sizes of 1."""
        import numpy as np

        return self.array(np.full((1,) * rank, number, numpy_dtype(dtype)), dtype)

    def weight(self, symbol: WeightSymbol) -> ITensor:
        """A weight in its own shape; an encoded one as codes and a Dequantize layer that decodes them to f32."""
        if symbol.type.encoding is not None:
            return self.decoded(symbol, symbol.type.dtype)
        array = self.constants.plain(symbol)
        key = ("weight", symbol.name, str(symbol.type))
        return self.local(key, lambda: self.constant(array, array.shape, trt_type(symbol.type.dtype), symbol.name))

    def decoded(self, symbol: WeightSymbol, dtype: DType) -> ITensor:
        """The numbers of an encoded weight, decoded to `dtype` by a Dequantize layer."""
        from irlab.backends.tensorrt.codes import dequantized

        return self.local(("decoded", symbol.name, str(dtype)), lambda: dequantized(self, symbol, dtype))

    # Scopes

    def local(self, key: object, make: Callable[[], ITensor]) -> ITensor:
        """The tensor known by `key` in the open scope, made when first asked for."""
        memo = self._scopes[-1].memo
        if key not in memo:
            memo[key] = make()
        return memo[key]

    def memo(self, key: object, make: Callable[[], ITensor]) -> ITensor:
        """As `local`, also found in the scopes around."""
        found = self._carried(lambda scope: scope.memo.get(key), lambda scope, t: scope.memo.update({key: t}))
        return self.local(key, make) if found is None else found

    def _carried(
        self, look: Callable[[Scope], ITensor | None], keep: Callable[[Scope, ITensor], None]
    ) -> ITensor | None:
        """What `look` finds in the innermost scope that has it, let into every conditional between there and here."""
        for depth in range(len(self._scopes) - 1, -1, -1):
            found = look(self._scopes[depth])
            if found is None:
                continue
            for scope in self._scopes[depth + 1 :]:
                layer = scope.conditional.add_input(found)
                layer.name = self.unique("input")
                found = layer.get_output(0)
                keep(scope, found)
            return found
        return None

    @contextmanager
    def branch(self, conditional: Any) -> Iterator[Scope]:
        """Open a scope whose layers run only where one branch of `conditional` is taken."""
        self._scopes.append(Scope(conditional))
        try:
            yield self._scopes[-1]
        finally:
            self._scopes.pop()

    # Graphs

    def lower(self, graph: Graph) -> None:
        """Add the layers of `graph` in the open scope; its inputs are bound already."""
        for op in graph.topo():
            if isinstance(op, Return | Weight):
                continue
            lowering = self._lowerings.get(type(op))
            if lowering is None:
                raise LegalityError(f"{location(op)} has no TensorRT form")
            outer, self._op = self._op, op
            lowering(op, self)
            self._op = outer


def location(op: Op) -> str:
    """An op and where it comes from, for messages and layer metadata."""
    path = op.loc.path if op.loc is not None else ""
    return f"{op.opname} in {path}" if path else op.opname


def input_type(type: TensorType) -> tuple[int, ...]:
    """The shape of a network input: -1 where a size is known only at run time."""
    return tuple(d if isinstance(d, int) else -1 for d in type.shape)
