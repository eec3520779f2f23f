"""What does a network hold? Its layers, types, attributes and constants, read back from the INetworkDefinition.

The text is what `network.json` shows, and what the evaluator compares to know that it evaluates the network that the
engine was built from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from irlab.backends.tensorrt.library import ILayer, load

if TYPE_CHECKING:
    from irlab.backends.tensorrt.network import Network

_WINDOW: Final = ("stride_nd", "padding_nd")

LAYERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ACTIVATION": ("IActivationLayer", ("type",)),
    "ATTENTION_INPUT": ("IAttentionInputLayer", ()),
    "ATTENTION_OUTPUT": ("IAttentionOutputLayer", ()),
    "CAST": ("ICastLayer", ("to_type",)),
    "CONCATENATION": ("IConcatenationLayer", ("axis",)),
    "CONDITION": ("IConditionLayer", ()),
    "CONDITIONAL_INPUT": ("IIfConditionalInputLayer", ()),
    "CONDITIONAL_OUTPUT": ("IIfConditionalOutputLayer", ()),
    "CONSTANT": ("IConstantLayer", ("shape",)),
    "CONVOLUTION": ("IConvolutionLayer", (*_WINDOW, "dilation_nd", "num_groups")),
    "CUMULATIVE": ("ICumulativeLayer", ("op", "exclusive", "reverse")),
    "DEQUANTIZE": ("IDequantizeLayer", ("axis", "to_type")),
    "DYNAMIC_QUANTIZE": ("IDynamicQuantizeLayer", ("axis", "block_size", "to_type", "scale_type")),
    "ELEMENTWISE": ("IElementWiseLayer", ("op",)),
    "FILL": ("IFillLayer", ("operation", "shape", "to_type")),
    "GATHER": ("IGatherLayer", ("axis", "mode", "num_elementwise_dims")),
    "IDENTITY": ("IIdentityLayer", ()),
    "KV_CACHE_UPDATE": ("IKVCacheUpdateLayer", ("cache_mode",)),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", ("op0", "op1")),
    "MOE": ("IMoELayer", ("activation_type",)),
    "NORMALIZATION": ("INormalizationLayer", ("axes", "epsilon", "num_groups")),
    "POOLING": ("IPoolingLayer", ("type", "window_size_nd", *_WINDOW, "average_count_excludes_padding")),
    "QUANTIZE": ("IQuantizeLayer", ("axis", "to_type")),
    "REDUCE": ("IReduceLayer", ("op", "axes", "keep_dims")),
    "ROTARY_EMBEDDING": ("IRotaryEmbeddingLayer", ("interleaved", "rotary_embedding_dim")),
    "SCATTER": ("IScatterLayer", ("axis", "mode")),
    "SELECT": ("ISelectLayer", ()),
    "SHAPE": ("IShapeLayer", ()),
    "SHUFFLE": ("IShuffleLayer", ("first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder")),
    "SLICE": ("ISliceLayer", ("start", "shape", "stride", "mode")),
    "SOFTMAX": ("ISoftMaxLayer", ("axes",)),
    "SQUEEZE": ("ISqueezeLayer", ()),
    "TOPK": ("ITopKLayer", ("op", "k", "axes")),
    "UNARY": ("IUnaryLayer", ("op",)),
    "UNSQUEEZE": ("IUnsqueezeLayer", ()),
}
"""The layers that lowerings make: TensorRT's class of each, and the attributes that say what it computes."""

_COSTLY: Final = ("MATRIX_MULTIPLY", "ATTENTION_OUTPUT", "CONVOLUTION", "MOE", "NORMALIZATION")
_ATTENTION: Final = ("norm_op", "causal_kind", "decomposable")


def kind_of(layer: ILayer) -> str:
    """The type of a layer as a word ("MATRIX_MULTIPLY"), whatever class it is seen as: some have a `type` of their
    own."""
    return str(load().ILayer.type.__get__(layer)).removeprefix("LayerType.")


def layers(definition: Any) -> Iterator[ILayer]:
    """The layers of a network, each as its own class."""
    library = load()
    for index in range(definition.num_layers):
        layer = definition.get_layer(index)
        kind = kind_of(layer)
        if kind in LAYERS:
            layer.__class__ = getattr(library, LAYERS[kind][0])
        yield layer


def attributes(layer: ILayer) -> dict[str, Any]:
    """What a layer computes, as plain values."""
    kind = kind_of(layer)
    found = {}
    # What an input tensor says instead of an attribute cannot be read as one.
    dynamic = {"SHUFFLE": {"reshape_dims"} if layer.num_inputs > 1 else set(), "SLICE": _dynamic_slice(layer, kind)}
    for name in LAYERS.get(kind, ("", ()))[1]:
        if name not in dynamic.get(kind, ()):
            found[name] = _plain(getattr(layer, name))
    if kind == "ATTENTION_OUTPUT":
        found |= {name: _plain(getattr(layer.attention, name)) for name in _ATTENTION}
    return found


def _dynamic_slice(layer: ILayer, kind: str) -> set[str]:
    if kind != "SLICE":
        return set()
    slots = {1: "start", 2: "shape", 3: "stride"}
    return {name for slot, name in slots.items() if slot < layer.num_inputs and layer.get_input(slot) is not None}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__members__") or hasattr(type(value), "__members__"):
        return value.name
    try:
        return [int(v) for v in value]
    except (TypeError, ValueError):
        return str(value)


def describe(network: Network) -> dict[str, Any]:
    """The network as JSON: inputs, outputs, layers in the order of the definition, and counts by kind and type."""
    definition = network.definition
    rows = [_row(layer, network) for layer in layers(definition)]
    stored: Counter[str] = Counter()
    for row in rows:
        if "constant" in row:
            stored[row["constant"]["type"]] += row["constant"]["bytes"]
    return {
        "name": definition.name,
        "inputs": [_tensor(definition.get_input(i)) for i in range(definition.num_inputs)],
        "outputs": [_tensor(definition.get_output(i)) for i in range(definition.num_outputs)],
        "layer_counts": dict(sorted(Counter(row["kind"] for row in rows).items())),
        "constant_bytes": dict(sorted(stored.items())),
        "layers": rows,
    }


def precision_of_layers(description: dict[str, Any]) -> dict[str, str]:
    """The type in which each layer that costs time computes, by its name."""
    return {row["name"]: row["outputs"][0]["type"] for row in description["layers"] if row["kind"] in _COSTLY}


def _row(layer: ILayer, network: Network) -> dict[str, Any]:
    slots = [layer.get_input(i) for i in range(layer.num_inputs)]
    row: dict[str, Any] = {
        "name": layer.name,
        "kind": kind_of(layer),
        "inputs": [None if tensor is None else tensor.name for tensor in slots],
        "outputs": [_tensor(layer.get_output(i)) for i in range(layer.num_outputs)],
    }
    found = attributes(layer)
    if found:
        row["attributes"] = found
    if layer.metadata:
        row["from"] = layer.metadata
    array = network.arrays.get(layer.name)
    if array is not None:
        digest = hashlib.sha256(array.tobytes() if array.nbytes else b"").hexdigest()[:16]
        kind = row["outputs"][0]["type"]
        row["constant"] = {"type": kind, "bytes": array.nbytes, "sha256": digest}
        if array.size <= 8 and array.dtype.kind in "iufb":
            row["constant"]["values"] = array.tolist()
    return row


def _tensor(tensor: Any) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": str(tensor.dtype).removeprefix("DataType.").lower(),
        "shape": list(tensor.shape),
    }
