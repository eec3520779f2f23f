"""Which config.json makes transformers compute exactly what a graph computes, if there is one?

The module's own config is lifted without weights, the fields that read differently off the two graphs are set, and the
result is lifted again: what is written is proven op by op, not believed. Of weights, only rotary frequencies are read.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from irlab.backends.hf.bisimulation import Difference, compare
from irlab.backends.hf.decoding import decoded, model_dtype
from irlab.backends.hf.fields import FIELDS, ROPE, same
from irlab.backends.hf.uncaching import uncached
from irlab.errors import IrlabError, LegalityError
from irlab.ir import Graph, Module
from irlab.ops import nn
from irlab.residual import require_no_shortcuts
from irlab.types import DType
from irlab.weights import WeightSymbol

ROUNDED: Final = "transformers computes this architecture in floats, and rounds no activations"
_ELSEWHERE: Final = "a layout says so to vLLM: hf{layout=compressed-tensors} or modelopt; or emit onnx or tensorrt"

_ROUNDS: Final = 3
"""A field may only show its influence after another was set: head_dim follows hidden_size where it is not given."""

_DTYPES: Final = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}

_STAND_INS: Final[dict[str, dict[str, Any]]] = {
    # transformers' Llama insists that its heads divide the hidden size, which the heads that are left need not.
    "llama": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
}
"""What makes a config.json one of an architecture that computes the same of more shapes, by its own architecture."""

_LOCAL_FIELDS: Final = ("auto_map", "_name_or_path")
"""Fields that speak of other files or places than the directory that is written."""


@dataclass(frozen=True)
class Proof:
    """`graph` is what transformers computes from `config`; `tensors` are the weights by the names it loads them under.

    `changed` holds the fields that differ from the module's own config, with the new values.
    """

    graph: Graph
    config: dict[str, Any]
    tensors: dict[str, WeightSymbol]
    changed: dict[str, Any]


def prove(module: Module) -> Proof:
    """The config.json of `module`, proven. Raises LegalityError naming the first op that no config makes so."""
    original = module.metadata.get("config")
    if not isinstance(original, dict):
        raise LegalityError(
            "hf: the module carries no Hugging Face config, so transformers has no architecture to load it with",
            "emit gguf, onnx or ir, or start from a Hugging Face model",
        )
    rounded = [*module.graph.find(nn.QuantizeActivation), *module.graph.find(nn.QuantizeActivationFloat)]
    if rounded:
        where = rounded[0].loc.path if rounded[0].loc else "the graph"
        raise LegalityError(f"hf: {rounded[0].opname} in {where}: {ROUNDED}", _ELSEWHERE)
    require_no_shortcuts(module.graph, "hf")
    if module.graph.find(nn.HardShrink):
        reason = "no model of transformers has thresholds of activations"
        raise LegalityError(f"hf: nn.hard_shrink: {reason}", "leave out dynamic-sparsity, or emit onnx")
    if module.graph.find(nn.QuantizeCache):
        raise LegalityError(
            "hf: how keys and values are kept is no part of a model: transformers is told when it generates",
            'leave out quantize-cache, and generate with cache_implementation="quantized"',
        )
    graph = _normal_form(decoded(uncached(module.graph)))
    config = _with_dtype({k: v for k, v in original.items() if k not in _LOCAL_FIELDS}, model_dtype(graph))
    try:
        config, reference = _fitted(graph, config)
    except LegalityError as refusal:
        config, reference = _stand_in(graph, config, refusal)
    comparison = compare(graph, reference.graph)
    if comparison.difference is not None:
        architecture = reference.metadata.get("architecture", "transformers")
        raise _refusal(comparison.difference, architecture, _varying(graph, config))
    changed = {key: value for key, value in config.items() if key not in original or original[key] != value}
    return Proof(graph, config, comparison.weights, changed)


def _fitted(graph: Graph, config: dict[str, Any]) -> tuple[dict[str, Any], Module]:
    """`config` with the fields that the graph decides, and what transformers builds of it. Raises LegalityError where
    it builds nothing."""
    reference = _lift(json.dumps(config, sort_keys=True))
    for _ in range(_ROUNDS):
        changes = _changes(graph, reference.graph, config)
        if not changes:
            break
        config = _updated(config, changes)
        reference = _lift(json.dumps(config, sort_keys=True))
    return config, reference


def _stand_in(graph: Graph, config: dict[str, Any], refusal: LegalityError) -> tuple[dict[str, Any], Module]:
    """`_fitted`, for another architecture that computes `graph`; raises `refusal` where there is none."""
    fields = _STAND_INS.get(config.get("model_type", ""))
    if fields is None:
        raise refusal
    config, reference = _fitted(graph, {**config, **fields})
    if compare(graph, reference.graph).difference is not None:
        raise refusal
    return config, reference


def _normal_form(graph: Graph) -> Graph:
    """`graph` in the one spelling in which graphs are compared."""
    from irlab.passmgr import Context, PassManager
    from irlab.schedule import build_pipeline

    for op in graph.find(nn.AddRMSNorm):
        results = op.decompose()
        graph.replace(op, *results)
    holder = Module(graph)
    PassManager(build_pipeline("canonicalize,cse,fuse,canonicalize,cse,dce"), Context()).run(holder)
    return holder.graph


@lru_cache(maxsize=4)  # a plan, a legalisation and other outputs of one model ask for the same
def _lift(config: str) -> Module:
    """The module of a model with this config.json, in normal form; its weights refer to files that are not there."""
    from irlab.registry import frontend
    from irlab.target import LoadRequest

    with tempfile.TemporaryDirectory(prefix="irlab-") as directory:
        Path(directory, "config.json").write_text(config, "utf-8")
        try:
            module = frontend("hf")().load(directory, LoadRequest())
        except IrlabError as error:
            reason = str(error).replace(directory, "").lstrip("/")
            raise LegalityError(f"hf: transformers builds no model from the graph's config: {reason}") from error
    module.graph = _normal_form(module.graph)
    return module


def _with_dtype(config: dict[str, Any], dtype: DType) -> dict[str, Any]:
    name = _DTYPES.get(dtype.name)
    if name is None:
        raise LegalityError(f"hf: transformers computes in no {dtype}", "cast the module to f32, f16 or bf16")
    found = copy.deepcopy(config)
    found["torch_dtype" if "torch_dtype" in found and "dtype" not in found else "dtype"] = name
    return found


def _declared(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with every field that its architecture declares, as transformers completes it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    completed: dict[str, Any] = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)).to_dict()
    return completed


def _varying(graph: Graph, config: dict[str, Any]) -> list[str]:
    """Fields of the architecture for which the graph has several values, of which a config.json holds one."""
    declared = _declared(config)
    return [field.name for field in FIELDS if field.name in declared and len(field.read(graph)) > 1]


def _changes(graph: Graph, reference: Graph, config: dict[str, Any]) -> dict[str, Any]:
    """The fields that read differently off the two graphs, with the values of `graph`."""
    differing = {}
    for field in FIELDS:
        mine, theirs = field.read(graph), field.read(reference)
        if len(mine) == 1 and not (len(theirs) == 1 and same(mine[0], theirs[0])):
            differing[field] = mine[0]
    if not differing:
        return {}
    declared = _declared(config)
    changes = {f.name: value for f, value in differing.items() if f.undeclared or f.name in declared}
    if changes.keys() & {"num_attention_heads", "hidden_size"} and "head_dim" not in config:
        # A config.json that does not state the size of heads means hidden_size / num_attention_heads.
        changes["head_dim"] = graph.find(nn.Attention)[0].q.type.shape[3]
    return changes


def _updated(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = {**config, **changes}
    if ROPE in changes:
        # Older files say it in two fields, which transformers joins.
        rope = dict(_declared(config)[ROPE])
        rope["rope_theta"] = changes[ROPE]["rope_theta"]
        if rope.get("rope_type") in ("default", "linear"):
            factor = changes[ROPE]["factor"]
            rope.update({"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"})
        found[ROPE] = rope
        found.pop("rope_theta", None)
        found.pop("rope_scaling", None)
    return found


def _refusal(difference: Difference, architecture: str, varying: list[str]) -> LegalityError:
    way_out = "gguf, onnx and ir follow the graph"
    if varying:
        way_out = (
            f"the graph has several values of {' and '.join(varying)}, a config.json holds one; prune all layers to "
            f"one width; {way_out}"
        )
    return LegalityError(
        f"hf: {difference.place} has {difference.found}; {architecture} with this config.json has "
        f"{difference.expected}",
        way_out,
    )
