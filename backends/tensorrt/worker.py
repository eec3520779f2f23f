"""The child process that TensorRT lives in: its builder may abort, and takes memory that must go back.

A line of JSON a request, a line an answer; see `irlab.children.Child`. Tasks:

    build     lower the module and write the engine and network.json
    load      lower the module, and check that it is the network that an engine was built from
    logits    of prompts, by the evaluator        greedy    tokens, by the evaluator
    probe     whether the builder really makes a kind of layer
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from irlab.errors import CheckError, InputError, IrlabError, LegalityError

ERRORS: Final[dict[str, type[IrlabError]]] = {
    "legality": LegalityError,
    "check": CheckError,
    "input": InputError,
}
"""The exceptions that cross to the parent, by the word that stands for each."""


def main() -> None:
    """Answer requests until stdin ends."""
    # What TensorRT prints by itself must not lie between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(answers)
    for line in sys.stdin:
        _say(answers, _answer(worker, json.loads(line)))


def _say(answers: IO[str], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return worker.tasks[request["task"]](request)
    except IrlabError as error:
        word = next((word for word, cls in ERRORS.items() if isinstance(error, cls)), "input")
        return {"error": word, "message": error.message, "hint": error.hint}
    except OSError as error:
        return {"errno": error.errno or 0, "message": error.strerror or str(error)}


class Worker:
    """What the process holds: a network, and the session that evaluates it."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._session: Any = None
        self.tasks: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "build": self.build,
            "load": self.load,
            "logits": self.logits,
            "greedy": self.greedy,
            "probe": self.probe,
        }

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write request["engine"] and request["description"] for the module in request["module"]."""
        from irlab.backends.tensorrt import network as networks
        from irlab.backends.tensorrt.description import describe, precision_of_layers
        from irlab.backends.tensorrt.interface import Interface
        from irlab.backends.tensorrt.library import builder_version

        network = self._lower(request)
        description = describe(network)
        Path(request["description"]).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        size = networks.build_to(network, request["targets"], Path(request["engine"]), self._note)
        profiles = [
            {"name": profile.name, "shapes": {name: shapes[i] for name, shapes in network.shapes.items()}}
            for i, profile in enumerate(network.profiles)
        ]
        answer = {
            "bytes": size,
            "interface": Interface.of(network).stated(),
            "profiles": profiles,
            "builder": builder_version(),
            "low_bit": network.low_bit,
            "precision_of_layers": precision_of_layers(description),
            "warnings": network.log.warnings,
        }
        network.close()
        return answer

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hold the network of request["module"] for evaluation."""
        from irlab.backends.tensorrt.description import describe
        from irlab.backends.tensorrt.evaluator.session import NetworkSession

        network = self._lower(request)
        described = json.loads(Path(request["description"]).read_text("utf-8"))
        if json.loads(json.dumps(describe(network))) != described:
            raise CheckError("the engine was built from another network than the module gives now")
        self._session = NetworkSession(network)
        return {}

    def _lower(self, request: dict[str, Any]) -> Any:
        from irlab.backends.tensorrt import network as networks
        from irlab.backends.tensorrt.profiles import Limits
        from irlab.store import read_directory

        module = read_directory(Path(request["module"]))
        return networks.lower(
            module, Limits.read(request["limits"]), Path(request["module"]), request["jobs"], self._note
        )

    def _note(self, label: str, done: int, total: int) -> None:
        _say(self._answers, {"note": [label, done, total]})

    def logits(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write the logits f32[tokens, vocab] of request["prompts"] to request["result"]."""
        import numpy as np

        found = {}
        for number, prompt in enumerate(request["prompts"]):
            self._session.forget()
            found[f"p{number}"] = self._session.step(prompt, 0)
        np.savez(request["result"], allow_pickle=False, **found)
        return {}

    def greedy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tokens after request["prompt"]."""
        from irlab.backends.tensorrt.interface import greedy

        return {"tokens": greedy(self._session, request["prompt"], request["count"])}

    def probe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whether an engine with request["layer"] can be built for request["targets"]."""
        from irlab.backends.tensorrt.probe import try_to_build
        from irlab.types import DTYPES

        return {"builds": try_to_build(request["layer"], request["targets"], DTYPES[request["dtype"]])}


if __name__ == "__main__":
    main()
