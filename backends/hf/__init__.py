"""The `hf` backend: a directory that transformers loads, for what a config.json can say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from irlab.errors import LegalityError
from irlab.ir import Module
from irlab.low_rank import MULTIPLIED_OUT
from irlab.ops import nn
from irlab.options import Bounds, Bytes
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow, Runtime

if TYPE_CHECKING:
    from irlab.ops.nn import ActivationRounding
    from irlab.weights import Readings, WeightSymbol

_TOLERANCE = {"f32": 1e-2, "f64": 1e-2}
_HALF_TOLERANCE = 5e-2
"""The largest logit difference allowed, by the dtype that the model computes in."""

_SHARD_BYTES = Bytes(5_000_000_000)
"""As transformers' save_pretrained used to choose: what a hub file may comfortably be."""


@dataclass(frozen=True)
class HF(Backend, name="hf"):
    """A Hugging Face directory that AutoModelForCausalLM.from_pretrained loads: config.json and safetensors.

    config.json follows the graph where it can (widths, layers, eps, activation, rope, biases, tied embeddings); the
    result is lifted again and compared with the graph op by op, so that what transformers computes is what the graph
    computes. Anything else is refused, naming the first op that differs. Weights are found by their place in the graph,
    not by name. Encoded ones are stored decoded, rounded to the dtype of the model: no smaller, for evaluation; their
    low-rank corrections are merged into them. A kv-cache is left out: transformers keeps its own.

    `layout`: how encoded matrices of linear layers are stored instead, for loaders that compute with their codes:
    compressed-tensors, gptq, awq or modelopt (irlab/layouts). An embedding table cannot be encoded in any of them. The
    first and the last of them say how activations are rounded, too.
    `shard`: the largest size of one safetensors file.
    """

    layout: Literal["plain", "compressed-tensors", "gptq", "awq", "modelopt"] = "plain"
    shard: Annotated[Bytes, Bounds(1)] = _SHARD_BYTES

    writes_directory = True

    def plan(self, module: Module) -> list[PlanRow]:
        from irlab.backends.hf.decoding import encodings, model_dtype
        from irlab.backends.hf.proof import prove
        from irlab.backends.hf.quantized import plan_rows
        from irlab.layouts import take_roundings

        dtype = model_dtype(module.graph)
        stored = encodings(module.graph)
        if self.layout == "plain":
            said = f"stored decoded, as {dtype}: no smaller"
            rows = [PlanRow(f"{count} weights in {encoding}", "emulated", said) for encoding, count in stored.items()]
        else:
            module = module.clone()
            try:
                rounded = take_roundings(module.graph)
            except LegalityError as error:
                return [PlanRow("the graph", "none", str(error))]
            rows = plan_rows(module.graph, rounded, self.layout)
        thin = module.graph.find(nn.LowRankLinear)
        corrected = sum(op.weight is not None for op in thin)
        if len(thin) > corrected:
            rows.append(PlanRow(f"{len(thin) - corrected} products of two factors", "emulated", MULTIPLIED_OUT))
        if corrected:
            rows.append(PlanRow(f"{corrected} low-rank corrections", "emulated", "merged into the decoded weights"))
        try:
            proof = prove(module)
        except LegalityError as error:
            return [PlanRow("the graph", "none", str(error)), *rows]
        architecture = proof.config.get("architectures", ["transformers"])[0]
        for name, value in proof.changed.items():
            if name == "model_type":
                rows.append(PlanRow(f"{name} = {value}", "special", f"{architecture} computes the same of these heads"))
            else:
                rows.append(PlanRow(f"{name} = {value}", "native", "set in config.json"))
        return [PlanRow("the graph", "native", f"equal op by op to what {architecture} computes"), *rows]

    def activation_refusal(self, op: ActivationRounding) -> str:
        from irlab.backends.hf.proof import ROUNDED
        from irlab.backends.hf.quantized import rounding_refusal

        return ROUNDED if self.layout == "plain" else rounding_refusal(op, self.layout)

    def legalise(self, module: Module, ctx: Context) -> Module:
        from irlab.backends.hf.decoding import encodings
        from irlab.backends.hf.files import companions
        from irlab.backends.hf.proof import prove
        from irlab.backends.hf.quantized import note_differences, quantized_names, require_holds
        from irlab.layouts import LAYOUTS, round_inputs, take_roundings

        companions(module)  # refuses before the work, if they have gone
        if self.layout != "plain" and any(isinstance(op, nn.MoE | nn.Experts) for op in module.graph.ops()):
            reason = f"the {self.layout} layout is written for linear layers, and the model has mixtures of experts"
            raise LegalityError(f"hf: {reason}", "layout=plain, or emit gguf or onnx")
        rounded = {} if self.layout == "plain" else take_roundings(module.graph)
        proof = prove(module)
        stored = encodings(module.graph)
        module.graph = proof.graph
        module.metadata["config"] = proof.config
        module.metadata["tensors"] = {name: symbol.name for name, symbol in proof.tensors.items()}
        module.metadata["decoded"] = dict(stored) if self.layout == "plain" else {}
        if self.layout != "plain":
            module.metadata["rounded"] = rounded
            require_holds(module, self.layout)
            described = quantized_names(module)
            files = LAYOUTS[self.layout].files(described)
            note_differences(module, described)
            module.metadata["config"] = {**proof.config, "quantization_config": files.pop("quantization_config")}
            module.metadata["files"] = files
            round_inputs(module.graph, rounded)
        return module

    def estimate_bytes(self, module: Module) -> int:
        from irlab.backends.hf.files import companions

        copied = sum(path.stat().st_size for path, _ in companions(module))
        return sum(symbol.size_bytes for symbol in self._tensors(module)) + copied + (1 << 20)

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        from irlab.backends.hf.files import copy_companions, model_card, write_json, write_weights
        from irlab.backends.hf.quantized import note_different_scales

        yield from write_weights(self._tensors(module), out, self.shard)
        if self.layout != "plain":
            note_different_scales(module, out)
        copy_companions(module, out)
        write_json(out / "config.json", module.metadata["config"])
        if module.metadata.get("generation_config"):
            write_json(out / "generation_config.json", module.metadata["generation_config"])
        for name, content in module.metadata.get("files", {}).items():
            write_json(out / name, content)
        (out / "README.md").write_text(model_card(module), "utf-8")

    def float_tolerance(self, module: Module) -> float | None:
        from irlab.backends.hf.decoding import model_dtype

        if self.layout != "plain":
            # What loads a layout decodes it as it likes: in the dtype of its scales, say.
            return None
        return _TOLERANCE.get(model_dtype(module.graph).name, _HALF_TOLERANCE)

    def runtime(self) -> Runtime:
        from irlab.backends.hf.transformers_runtime import Transformers

        return Transformers(self.layout)

    def _tensors(self, module: Module) -> list[WeightSymbol]:
        """The weights of a legalised module under the names that transformers loads them by."""
        from irlab.backends.hf.quantized import quantized_tensors
        from irlab.layouts.experts import one_by_one
        from irlab.weights import WeightSymbol

        weights = module.weights
        if self.layout == "plain":
            tensors = [WeightSymbol(name, weights[ours].recipe) for name, ours in module.metadata["tensors"].items()]
        else:
            tensors = quantized_tensors(module, self.layout)
        return one_by_one(tensors, str(module.metadata["config"].get("model_type")))
