"""The Python interface: load, run, emit, parse, evaluate, find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .collector import paused
from .errors import InputError
from .ir import Graph, Module
from .options import format_value
from .passmgr import Context, Instrument, Pass, PassManager
from .pipeline import parse_target
from .schedule import build_pipeline

if TYPE_CHECKING:
    import torch

    from .emission import Emitted
    from .pattern import Pattern
    from .rewrite import Match, Rule
    from .target import Backend


@paused()
def load(
    source: object,
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Module:
    """Lift `source` into a module.

    `source` is a Hugging Face directory or hub id, a GGUF file, "demo", an `.ir` file or `.irlab` directory,
    "python:pkg.mod:name", or a torch.nn.Module, which needs `args` (example inputs) and takes `dynamic_shapes` as
    torch.export does. Raises InputError where it cannot be lifted.
    """
    from . import registry
    from .target import LoadRequest

    if not isinstance(source, str | Path):
        return registry.frontend("torch")().load_object(source, args or (), dict(kwargs or {}), dynamic_shapes)
    text = str(source)
    if text == "demo":
        from .demo import path

        text = str(path())
    if text.endswith((".ir", ".irlab")):
        from .store import read_directory, read_file

        return (read_file if text.endswith(".ir") else read_directory)(Path(text))
    request = LoadRequest(revision, trust_remote_code)
    for name in registry.names("frontends"):
        frontend = registry.frontend(name)()
        if frontend.accepts(text):
            return frontend.load(text, request)
    what = "is not a model that irlab can read" if Path(text).exists() else "does not exist"
    raise InputError(
        f"{text} {what}",
        "give a Hugging Face directory, a .gguf or .ir file, an .irlab directory, python:pkg.mod:name or demo",
    )


def parse(text: str, directory: Path | None = None, source: str = "<text>") -> Module:
    """Read a module from IR text; weight files are relative to `directory`. Raises ParseError, which names `source`."""
    from .text import parse_module

    return parse_module(text, directory, source)


def run(
    module: Module,
    pipeline: str | Pass | Sequence[Pass],
    *,
    targets: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    instruments: Sequence[Instrument] | None = None,
    calibration: object = None,
    calibration_tokens: int = 32768,
    calibration_length: int = 512,
    cache_dir: str | Path | None = None,
) -> Module:
    """A new module: `module` after the passes of `pipeline`: as text, or one or several passes configured in Python.

    `targets` says where it must run ("gguf", "onnx{precision=fp16}"); passes that they require come first.
    `calibration` is what passes learn from: a text file, token ids (an array, lists, a .npy or .json file), "self" for
    what the model writes itself, or a table of input arrays [samples, ...]. Long computations are kept in `cache_dir`.
    """
    from .calibration import Sample
    from .instruments import VerifyEach
    from .rehearsal import rehearsed

    new = module.clone()
    sample = None if calibration is None else Sample(calibration, calibration_tokens, calibration_length)
    cache = None if cache_dir is None else Path(cache_dir)
    outputs = tuple(make_backend(target, {}) for target in targets)
    ctx = Context(
        targets=tuple(output.name for output in outputs),
        outputs=outputs,
        seed=seed,
        device=device,
        calibration=sample,
        cache_dir=cache,
    )
    passes = build_pipeline(pipeline, outputs)
    if sample is not None:
        rehearsed(new, passes, ctx)  # what a later pass refuses is known before an earlier one computes
    PassManager(passes, ctx, (VerifyEach(),) if instruments is None else instruments).run(new)
    return new


def make_backend(target: str, options: Mapping[str, object]) -> Backend:
    """The backend that `target` ("gguf{type=q8_0}") names, with further `options`."""
    from . import registry

    step = parse_target(target)
    texts = dict(step.options) | {key: format_value(value) for key, value in options.items()}
    return registry.backend(step.name).configure(texts)


def emit(
    module: Module,
    target: str,
    out: str | Path,
    *,
    parity: bool | None = None,
    force: bool = False,
    ctx: Context | None = None,
    **options: object,
) -> Emitted:
    """Write `module` for `target` to `out`, whole or not at all, and check it in the real runtime.

    `options` are the backend's. `parity=None` checks small models, True insists, False skips.
    Raises LegalityError where the target cannot hold the module, CheckError where the written file computes
    something else (it is then kept as OUT.rejected).
    """
    from .emission import emit_with

    return emit_with(make_backend(target, options), module, Path(out), parity=parity, force=force, ctx=ctx)


def emit_all(
    module: Module,
    outputs: Mapping[str | Path, str],
    *,
    parity: bool | None = None,
    force: bool = False,
    ctx: Context | None = None,
) -> list[Emitted]:
    """Write `module` to several places, each for a target: {"m.gguf": "gguf", "m-onnx": "onnx{ep=cuda}"}.

    As `emit` for each, except that weights are read and encoded once, and all outputs get the same codes.
    """
    from .emission import emit_together, prepare_output

    chosen = [(make_backend(target, {}), Path(out)) for out, target in outputs.items()]
    ctx = ctx or Context(targets=tuple(dict.fromkeys(backend.name for backend, _ in chosen)))
    for backend, out in chosen:
        prepare_output(backend, module, out, force=force, ctx=ctx)  # refused before anything is computed
    return list(emit_together(module, chosen, parity=parity, force=force, ctx=ctx))


def evaluate(
    module: Module, inputs: Mapping[str, Any], *, device: str = "cpu", weights: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The outputs of `module` by name, computed by the reference interpreter. `inputs`: tensors or arrays by name.

    `weights` replaces weights by name; gradients flow to them. Inputs of a cached decoder that are missing are empty.
    """
    from .interp import evaluate as interpret

    return interpret(module, inputs, device=device, weights=weights)


def find(graph: Graph | Module, pattern: Pattern | Rule | type[Rule] | Callable[..., Any]) -> Iterator[Match]:
    """The matches of `pattern` in `graph` and its regions, without rewriting: a rule, a pattern, or a function from
    pattern variables to a pattern (`lambda x: x * p.sigmoid(x)`)."""
    from .rewrite import find as find_matches

    return find_matches(graph.graph if isinstance(graph, Module) else graph, pattern)
