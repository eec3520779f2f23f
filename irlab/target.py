"""What a plug-in at either end of the compiler is: frontends lift, backends legalise and write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from .errors import InputError
from .ir import Module
from .options import Configurable

if TYPE_CHECKING:
    import numpy as np

    from .encodings import Encoding
    from .ops.nn import ActivationRounding
    from .passmgr import Context
    from .types import TensorType
    from .weights import Readings


@dataclass(frozen=True)
class LoadRequest:
    """What the user said about an input: a hub revision, and whether code that comes with it may run."""

    revision: str | None = None
    trust_remote_code: bool = False


class Frontend(ABC):
    """Lifts one kind of input into a module. Subclass with `name=`: `class HF(Frontend, name="hf")`."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """Whether `source` (a path, a hub id, `python:...`) is of this kind; looks at names, reads little."""

    @abstractmethod
    def load(self, source: str, request: LoadRequest) -> Module:
        """Lift `source`; raises InputError in one line."""

    def load_object(self, source: object, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Module:
        """Lift a live Python object, such as a torch module with example inputs."""
        raise InputError(f"the frontend {self.name} lifts no Python objects")


Holding = Literal["native", "emulated", "special", "none"]
"""How a target represents something: N, E, A (through a special architecture) or not at all."""


@dataclass(frozen=True)
class PlanRow:
    """One line of `--plan`: what is asked, how the target holds it, and a word on it (or the way out)."""

    what: str
    holding: Holding
    note: str = ""


class Speed(NamedTuple):
    """Tokens per second: of a prompt, and of what is decoded after it one by one."""

    prompt: float
    decode: float


class Runtime(ABC):
    """Runs what a backend wrote, in the real runtime; in a child process where that may abort."""

    name: str

    @abstractmethod
    def unavailable(self) -> str:
        """Empty if the runtime can be run here, else the reason why not."""

    @abstractmethod
    def logits(self, out: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The logits of each prompt: f32[tokens, vocab]."""

    @abstractmethod
    def greedy(self, out: Path, prompt: Sequence[int], count: int) -> list[int]:
        """`count` greedily chosen tokens after `prompt`."""


class TimedRuntime(Runtime):
    """A runtime whose speed is what users of the target will see."""

    @abstractmethod
    def speed(self, out: Path, prompt: int, new: int, *, processor: bool = False) -> Speed:
        """How fast a prompt of `prompt` tokens and `new` tokens after it run, once warm.

        `processor`: on one thread, and in seconds of processor time, which hardly depend on what else is running."""


class Backend(Configurable, ABC):
    """Writes modules for one runtime. Subclasses are frozen dataclasses whose fields are the options.

        @dataclass(frozen=True)
        class GGUF(Backend, name="gguf"):
            type: str = "auto"

    The work is in three steps, so that each can be seen: `legalise` turns a copy of the module into what the format can
    say (or raises LegalityError), `write` streams it to disk, the runtime hooks run what was written.

    `requires` names passes without which no module becomes legal, each with the reason: they are run first where a
    pipeline has them not.
    """

    requires: ClassVar[Mapping[str, str]] = {}
    writes_directory: ClassVar[bool] = False
    readings: ClassVar[int] = 1
    """How often the weights are read for one output."""

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name

    @abstractmethod
    def plan(self, module: Module) -> list[PlanRow]:
        """How the target holds each kind of op, encoding and shape of `module`; reads no weight."""

    def holds(self, encoding: Encoding) -> bool:
        """Whether weights in `encoding` are stored natively."""
        return False

    def activation_refusal(self, op: ActivationRounding) -> str:
        """Why the target cannot round an activation as `op` does; empty if it can."""
        return ""

    @abstractmethod
    def legalise(self, module: Module, ctx: Context) -> Module:
        """The module as it will be written. `module` is a copy that may be changed. Raises LegalityError."""

    def refuse(self, module: Module, out: Path) -> None:
        """Raise InputError where `write` could not write a legalised module to `out`, as far as that shows without
        reading a large weight: it is asked before any work is done for the output."""

    @abstractmethod
    def estimate_bytes(self, module: Module) -> int:
        """About how many bytes `write` will write for a legalised module; checked against the free disk space."""

    def exact_bytes(self, module: Module) -> int | None:
        """How many bytes `write` will write for a legalised module, all files together; None where only writing them
        shows that. Reads no large weight."""
        return None

    def weight_bytes(self, type: TensorType, module: Module) -> int:
        """The bytes that a weight of this type takes in what is written for `module`, padding included: to compare
        types by."""
        size = type.size_bytes
        assert isinstance(size, int), "sizes of weights are known"
        return size

    @abstractmethod
    def write(self, module: Module, out: Path, ctx: Context) -> Readings | None:
        """Write a legalised module to `out`, a fresh path: a file, or a directory if `writes_directory`.

        A generator yields what it wants of the weights, and is resumed when it has been given that (or the error is
        raised in it): outputs of one command read together, each tensor of the source once.

            def write(self, module, out, ctx):
                with open(out, "wb") as file:
                    yield Reading(list(module.weights.values()), finite_rows, lambda chunk: file.write(chunk.value))

        A plain function reads by itself, beside the others."""

    def beside(self, module: Module) -> tuple[str, ...]:
        """The suffixes of files that `write` puts beside `out` for a legalised module, in place of its own suffix."""
        return ()

    def is_directory(self, out: Path) -> bool:
        """Whether `write` makes a directory of `out`."""
        return self.writes_directory

    def float_tolerance(self, module: Module) -> float | None:
        """The largest logit difference of a float file (design: 1e-2 for f32, 5e-2 for half), or None where weights
        or activations are encoded and the parity rule for encoded files holds."""
        return None

    def runtime(self) -> Runtime | None:
        """The real runtime that parity is checked in, or None if there is none."""
        return None

    def runtime_for(self, module: Module) -> Runtime | None:
        """`runtime()`, for a backend whose runtime needs the legalised `module` as well."""
        return self.runtime()
