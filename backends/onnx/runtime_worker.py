"""The child process that runs a written directory: a request as JSON on stdin, an answer as JSON on stdout."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from irlab.backends.onnx.genai import ACCURACY_KEY, CONFIG_FILE
from irlab.backends.onnx.writer import MODEL_FILE
from irlab.feeding import Feeder

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_NUMPY |= {"tensor(int8)": np.int8, "tensor(uint8)": np.uint8}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    directory = Path(request["directory"])
    answer: dict[str, Any] = {}
    engine = ENGINES[request["engine"]]
    if request["task"] == "logits":
        feeder = feed(engine(directory))
        found = {f"p{i}": next(feeder.steps(p, []))[0] for i, p in enumerate(request["prompts"])}
        np.savez(request["result"], allow_pickle=False, **found)
    elif request["task"] == "speed":
        answer = speed(directory, request)
    elif _by_genai(directory, request):
        answer["tokens"] = genai_greedy(directory, request["prompt"], request["count"])
    else:
        answer["tokens"] = feed(engine(directory)).greedy(request["prompt"], request["count"])
    print(json.dumps(answer))


class Engine(Protocol):
    """What runs a model: the shape and dtype of each input, and one run."""

    inputs: dict[str, tuple[list[Any], Any]]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""


class OnnxRuntimeEngine:
    """ONNX Runtime's CPU provider. `threads`: 0 for as many as there are cores."""

    def __init__(self, directory: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        config = directory / CONFIG_FILE
        if config.is_file():  # run as onnxruntime-genai would
            stated = json.loads(config.read_text("utf-8"))["model"]["decoder"]["session_options"]
            options.add_session_config_entry(ACCURACY_KEY, stated[ACCURACY_KEY])
        model = str(directory / MODEL_FILE)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {v.name: (v.shape, _NUMPY[v.type]) for v in self._session.get_inputs()}
        self._outputs = [v.name for v in self._session.get_outputs()]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self._outputs, self._session.run(None, feed)))


class OpenVinoEngine:
    """OpenVINO on the CPU, through its own reader of ONNX, computing in f32: it would choose bf16 where it can."""

    def __init__(self, directory: Path) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(directory / MODEL_FILE))
        self._compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.inputs = {
            port.any_name: (
                [d.get_length() if d.is_static else None for d in port.partial_shape],
                port.element_type.to_dtype().type,
            )
            for port in self._compiled.inputs
        }

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return {port.any_name: values for port, values in self._compiled(feed).items()}


ENGINES: Final[dict[str, Callable[[Path], Engine]]] = {
    "onnxruntime": lambda directory: OnnxRuntimeEngine(directory),
    "openvino": lambda directory: OpenVinoEngine(directory),
}


def feed(engine: Engine) -> Feeder:
    """A decoder in an engine, step by step."""
    return Feeder(engine.inputs, engine.run)


def _by_genai(directory: Path, request: dict[str, Any]) -> bool:
    return (directory / CONFIG_FILE).is_file() and request["engine"] == "onnxruntime"


def speed(directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Medians of tokens per second of a prompt and of the tokens after it, after one unmeasured round: as
    onnxruntime-genai runs it where the directory has its configuration. With "processor", of processor time of one
    thread."""
    prompt, new = [1] * request["prompt"], request["new"]
    clock = time.process_time if request["processor"] else time.perf_counter
    if _by_genai(directory, request):
        import onnxruntime_genai as og

        config = og.Config(str(directory))
        if request["processor"]:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
        run = partial(genai_steps, og.Model(config), prompt, new)
    elif request["processor"] and request["engine"] == "onnxruntime":
        run = partial(feed(OnnxRuntimeEngine(directory, threads=1)).fed_steps, prompt)
    else:
        run = partial(feed(ENGINES[request["engine"]](directory)).fed_steps, prompt)
    rates: dict[str, list[float]] = {"prompt": [], "decode": []}
    begun, warm = clock(), False
    while not rates["prompt"] or clock() - begun < request["seconds"]:
        steps = run()
        started = clock()
        next(steps)
        prompted = clock()
        for _ in range(new):
            next(steps)
        done = clock()
        if warm:
            rates["prompt"].append(len(prompt) / (prompted - started))
            rates["decode"].append(new / (done - prompted))
        warm = True
    return {name: statistics.median(values) for name, values in rates.items()}


def genai_steps(model: Any, prompt: list[int], new: int) -> Iterator[None]:
    """A step for the prompt, then one for each token after it."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + new, do_sample=False)
    generator = og.Generator(model, params)
    tokens = prompt
    while True:
        generator.append_tokens(tokens)
        yield
        tokens = [1]


def genai_greedy(directory: Path, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after `prompt` by onnxruntime-genai, chosen here, because it would stop at an end of text."""
    import onnxruntime_genai as og

    config = og.Config(str(directory))
    config.clear_providers()
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, params)
    chosen: list[int] = []
    fresh = prompt
    while len(chosen) < count:
        generator.append_tokens(fresh)
        fresh = [int(np.asarray(generator.get_logits())[0, -1].argmax())]
        chosen += fresh
    return chosen


if __name__ == "__main__":
    main()
