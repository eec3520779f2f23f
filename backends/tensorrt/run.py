"""Generates text with a built engine, where a GPU is present: `python -m irlab.backends.tensorrt.run DIRECTORY PROMPT`.

Memory on the device is torch's. Caches stay there, and are written in place by the engine. (Written against
TensorRT's API; not run on hardware here.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from irlab.backends.tensorrt import library
from irlab.backends.tensorrt.interface import Interface, Port, decode, small_inputs
from irlab.errors import InputError, IrlabError

if TYPE_CHECKING:
    import numpy as np
    import torch

_MAX_CONFIG_BYTES: Final = 10_000_000

_TORCH: Final = {
    "float": "float32", "half": "float16", "bf16": "bfloat16", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip


class EngineSession:
    """An engine of a decoder on the GPU, for one sequence at a time. Raises InputError where it cannot be loaded."""

    def __init__(self, directory: Path) -> None:
        import torch

        self.config = read_config(directory)
        self.interface = Interface.read(self.config)
        if not torch.cuda.is_available():
            raise InputError("no CUDA device was found, and engines run nowhere else")
        trt = library.load()
        logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine((directory / self.config["engine"]).read_bytes())
        if self._engine is None:
            have = "sm{}{}".format(*torch.cuda.get_device_capability())
            made = ", ".join(self.config["compute_capabilities"])
            raise InputError(f"the engine does not load on this GPU ({have}); it was built for {made}")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._profile_names = [str(profile["name"]) for profile in self.config["profiles"]]
        self._profile = ""
        self._cache: dict[str, torch.Tensor] = {}
        self.forget()

    def forget(self) -> None:
        ports = {port.name: port for port in self.interface.inputs}
        self._cache = {name: self._empty(ports[name]) for name in self.interface.caches}

    def _empty(self, port: Port) -> torch.Tensor:
        import torch

        _, heads, length, width = port.shape
        return torch.zeros((1, heads, max(0, length), width), dtype=torch_type(port), device="cuda")

    def step(self, tokens: Sequence[int], past: int) -> np.ndarray:
        import torch

        self._choose("decode" if len(tokens) == 1 and past else "prefill")
        held = {n: torch.from_numpy(x).cuda() for n, x in small_inputs(self.interface, tokens, past).items()}
        ports = {port.name: port for port in self.interface.inputs}
        for name, tensor in held.items():
            held[name] = tensor.to(torch_type(ports[name]))
        held |= self._cache
        for name, tensor in held.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, _address(tensor))
        results = {port.name: self._output(port) for port in self.interface.outputs}
        for name, tensor in results.items():
            self._context.set_tensor_address(name, _address(tensor))
        torch.cuda.current_stream().synchronize()
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise InputError("the engine failed; TensorRT's message is above")
        self._stream.synchronize()
        self._cache = {name: results[output] for name, output in self.interface.caches.items()}
        logits: np.ndarray = results["logits"][0].float().cpu().numpy()
        return logits

    def _choose(self, name: str) -> None:
        """Switch to the profile called `name`, or the only one."""
        wanted = name if name in self._profile_names else self._profile_names[0]
        if wanted != self._profile:
            index = self._profile_names.index(wanted)
            if not self._context.set_optimization_profile_async(index, self._stream.cuda_stream):
                raise InputError(f"the engine refuses its profile '{wanted}'")
            self._stream.synchronize()
            self._profile = wanted

    def _output(self, port: Port) -> torch.Tensor:
        """Memory for an output; that of the cache which is written in place."""
        import torch

        for cache, output in self.interface.buffers.items():
            if output == port.name:
                return self._cache[cache]
        shape = tuple(self._context.get_tensor_shape(port.name))
        return torch.empty(shape, dtype=torch_type(port), device="cuda")


def torch_type(port: Port) -> torch.dtype:
    """The torch dtype of an input or output."""
    import torch

    if port.type not in _TORCH:
        raise InputError(f"torch has no type for '{port.name}', {port.type}")
    dtype: torch.dtype = getattr(torch, _TORCH[port.type])
    return dtype


def _address(tensor: torch.Tensor) -> int:
    # An empty tensor has no memory, and TensorRT refuses a null address.
    return tensor.data_ptr() or 256


def read_config(directory: Path) -> dict[str, Any]:
    """engine.json, as far as a runner relies on it. Raises InputError."""
    file = directory / "engine.json"
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise InputError(f"{file} is too large to be an engine's description")
        stated = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", "give a directory that --emit tensorrt wrote") from None
    except ValueError:
        raise InputError(f"{file} is not JSON") from None
    if not isinstance(stated, dict) or not isinstance(stated.get("profiles"), list) or not stated["profiles"]:
        raise InputError(f"{file} does not describe an engine")
    if stated.get("engine") != Path(str(stated.get("engine"))).name:
        raise InputError(f"{file} names an engine outside its directory")
    return stated


def generate(directory: Path, prompt: str, count: int) -> str:
    """`prompt` with up to `count` greedily chosen tokens after it, printed as they come."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{directory} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    session = EngineSession(directory)
    ids = tokenizer.encode(prompt).ids
    ends = set(session.config.get("eos_token_ids", ()))
    steps = decode(session, ids)
    logits, shown = next(steps), tokenizer.decode(ids)
    print(shown, end="", flush=True)
    for _ in range(count):
        token = int(logits.argmax())
        if token in ends:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        print(text[len(shown) :], end="", flush=True)
        shown = text
        logits = steps.send(token)
    print()
    return str(shown)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m irlab.backends.tensorrt.run", description=__doc__)
    parser.add_argument("directory", type=Path, help="what --emit tensorrt wrote")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="how many tokens to generate at most")
    args = parser.parse_args(argv)
    try:
        generate(args.directory, args.prompt, args.tokens)
    except IrlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
