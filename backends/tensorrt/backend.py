"""The TensorRT backend: its options, and the three steps legalise, write, run."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from irlab.encodings import Encoding
from irlab.errors import InputError, UsageError
from irlab.ir import Module, Weight
from irlab.ops.nn import Attention, QuantizeActivationFloat
from irlab.options import Bounds
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow, Runtime
from irlab.types import bf16, f32
from irlab.weight_uses import weight_uses

if TYPE_CHECKING:
    from irlab.backends.tensorrt.profiles import Limits
    from irlab.weights import Readings

ENGINE_CONFIG: Final = "engine.json"
_SHALLOW_LAYERS: Final = 12
"""Up to this depth the parity gate's usual tolerance for half holds."""


def _option(text: str, default: Any) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class TensorRT(Backend, name="tensorrt"):
    """Engines for NVIDIA GPUs, built ahead of time without one, of any graph.

    Writes model.engine, engine.json, network.json (every layer with its types and constants) and the tokenizer's
    files. `python -m irlab.backends.tensorrt.run DIRECTORY PROMPT` generates where a GPU is present.

    targets    compute capabilities, all served by one engine: sm75, sm80, sm86, sm89, sm120, sm121 (tensorrt-rtx has
               no sm90); without it sm80, sm86, sm89 and sm120, as far as they hold the types of the weights
    precision  auto: as the IR is; fp16, bf16, fp32: what is not encoded, in that type
    max-batch  max-seq  max-past   the largest batch, prompt and cache; 0: the model's context, up to 4096
    opt-batch  opt-seq  opt-past   the sizes that the engine is tuned for; 0: 128 tokens, half a cache
    sizes      other symbolic sizes, as NAME:SMALLEST:USUAL:LARGEST
    """

    writes_directory = True
    readings = 2  # for the engine, and for the evaluator

    targets: tuple[str, ...] = ()
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    max_batch: Annotated[int, Bounds(1)] = _option("max-batch", 4)
    max_seq: Annotated[int, Bounds(0)] = _option("max-seq", 0)
    max_past: Annotated[int, Bounds(0)] = _option("max-past", 0)
    opt_batch: Annotated[int, Bounds(1)] = _option("opt-batch", 1)
    opt_seq: Annotated[int, Bounds(0)] = _option("opt-seq", 0)
    opt_past: Annotated[int, Bounds(0)] = _option("opt-past", 0)
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        from irlab.backends.tensorrt.profiles import read_spans
        from irlab.backends.tensorrt.targets import require_known

        require_known(self.targets)
        read_spans(self.sizes)
        for name in ("batch", "seq", "past"):
            usual, largest = getattr(self, f"opt_{name}"), getattr(self, f"max_{name}")
            if largest and usual > largest:
                raise UsageError(
                    f"tensorrt{{opt-{name}={usual} max-{name}={largest}}} contradict each other",
                    "1 <= opt <= max must hold",
                )

    def limits(self, module: Module) -> Limits:
        """The sizes that the engine takes. Raises UsageError where options contradict each other, or the module."""
        from irlab.backends.tensorrt.profiles import Limits, read_spans, require_sizes

        sizes = (self.max_batch, self.max_seq, self.max_past, self.opt_batch, self.opt_seq, self.opt_past)
        stated, spans = module.metadata.get("config", {}).get("max_position_embeddings"), read_spans(self.sizes)
        require_sizes(module.graph, spans)
        return Limits(*sizes, spans).resolved(stated if isinstance(stated, int) else 0)

    def chosen_targets(self, module: Module) -> tuple[str, ...]:
        """The compute capabilities to build for. Raises LegalityError where one cannot hold the module's types."""
        from irlab.backends.tensorrt.codes import stored_type
        from irlab.backends.tensorrt.targets import choose
        from irlab.precision import compute_dtype

        needed: dict[str, str] = {}
        for name, symbol in module.weights.items():
            if symbol.type.encoding is not None and stored_type(symbol.type.encoding):
                needed.setdefault(stored_type(symbol.type.encoding), f"weight '{name}' ({symbol.type.encoding})")
        for op in module.graph.find(QuantizeActivationFloat):
            needed.setdefault("fp8" if op.element == "e4m3" else "fp4", "rounded activations")
        if self.precision == "bf16" or (self.precision == "auto" and compute_dtype(module) is bf16):
            needed["bf16"] = "the model's numbers"
        return choose(self.targets, needed)

    def plan(self, module: Module) -> list[PlanRow]:
        from irlab.backends.tensorrt.plan import plan

        return plan(module, self)

    def holds(self, encoding: Encoding) -> bool:
        from irlab.backends.tensorrt.codes import emulated, stored_type

        return bool(stored_type(encoding)) and not emulated(encoding)

    def legalise(self, module: Module, ctx: Context) -> Module:
        from irlab.backends.tensorrt.legalise import legalise
        from irlab.backends.tensorrt.profiles import buffered_caches, profiles

        limits = self.limits(module)
        legal = legalise(module, self.precision, ctx, self._builds_experts)
        self.chosen_targets(legal)
        profiles(legal.graph, limits, bool(buffered_caches(legal.graph)))
        return legal

    def _builds_experts(self, module: Module) -> bool:
        from irlab.backends.tensorrt.probe import builds
        from irlab.precision import compute_dtype

        return builds("moe", self.chosen_targets(module), compute_dtype(module))

    def refuse(self, module: Module, out: Path) -> None:
        from irlab.backends.tensorrt import library

        if library.missing():
            raise InputError(library.missing())

    def estimate_bytes(self, module: Module) -> int:
        # The module beside it, the codes repacked, and the engine, which holds a table twice that is a head as well.
        copies = 0
        for uses in weight_uses(module.graph).values():
            again = uses.symbol.type.encoding is not None or len(uses.users) > 1
            copies += uses.symbol.size_bytes * (3 if again else 2)
        return copies + copies // 20 + (16 << 20)

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        from irlab.backends.hf.files import companions
        from irlab.backends.tensorrt.process import build

        limits, targets = self.limits(module), self.chosen_targets(module)
        built = yield from build(module, limits, targets, out, ctx)
        (out / ENGINE_CONFIG).write_text(json.dumps(self._config(module, built), indent=2) + "\n", "utf-8")
        for source, name in companions(module):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / name)

    def _config(self, module: Module, built: dict[str, Any]) -> dict[str, Any]:
        """engine.json: what a runner and a reader need to know."""
        from irlab.backends.tensorrt.process import ENGINE_FILE, NETWORK_FILE
        from irlab.precision import compute_dtype

        metadata = module.metadata
        generation = metadata.get("generation_config", {})
        ends = generation.get("eos_token_id", metadata.get("config", {}).get("eos_token_id"))
        return {
            "engine": ENGINE_FILE,
            "network": NETWORK_FILE,
            "builder": built["builder"],
            "compute_capabilities": list(self.chosen_targets(module)),
            "precision": compute_dtype(module).name,
            "encoded_weights": built["low_bit"],
            **built["interface"],
            "profiles": built["profiles"],
            "precision_of_layers": built["precision_of_layers"],
            "eos_token_ids": [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)],
            "model": module.name,
            "licence": metadata.get("licence"),
            "base_model": metadata.get("base_model"),
        }

    def float_tolerance(self, module: Module) -> float | None:
        from irlab.precision import compute_dtype

        if any(op.symbol.type.encoding is not None for op in module.graph.find(Weight)):
            return None
        dtype = compute_dtype(module)
        if dtype is f32:
            return 1e-2
        # The interpreter and the evaluator round to half at every layer, each in its own order: independent errors,
        # which grow with the root of the depth. (SmolLM2, 30 layers: each lies 0.1 from f32 where logits reach 29.)
        depth = math.sqrt(max(1.0, len(module.graph.find(Attention)) / _SHALLOW_LAYERS))
        # As many units in the last place of bf16, which are eight times as large: logits of 17 lie 0.125 apart.
        return 5e-2 * depth * (8 if dtype is bf16 else 1)

    def runtime_for(self, module: Module) -> Runtime:
        from irlab.backends.tensorrt.process import NetworkRuntime

        return NetworkRuntime(module, self.limits(module))
