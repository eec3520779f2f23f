"""How do outputs come about? Each is legalised, then all read their weights together, then each is finished.

An output is a generator: it stops where it wants weights, and goes on when all that stop there have been served. So
nothing is written before every target has agreed to hold the module, each tensor of the source is read once, and what
goes wrong with one output is raised inside it, where its temporary files are cleared away.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .compute_once import for_outputs
from .errors import IrlabError, UsageError
from .ir import Module
from .outputs import require_size, require_space, require_writable, size_bytes, whole_output
from .parity import Parity, check_parity, require_parity
from .passmgr import Context
from .target import Backend, Runtime
from .timing import Span
from .verify import verify
from .weights import Reading, finite_rows, read_alone, read_together


@dataclass
class Emitted:
    """One output that was written."""

    target: str
    out: Path
    bytes: int
    parity: Parity
    seconds: float
    notes: tuple[str, ...] = ()
    """What the backend could not say exactly, or did in another way."""
    runtime: Runtime | None = None
    """What runs it."""


def emit_with(
    backend: Backend, module: Module, out: Path, *, parity: bool | None, force: bool, ctx: Context | None = None
) -> Emitted:
    """`irlab.emit`, with a backend that is already configured."""
    ctx = ctx or Context(targets=(backend.name,))
    (emitted,) = _finished([_Output(backend, module, out, parity, force, ctx)], ctx)
    return emitted


def emit_together(
    module: Module,
    outputs: Sequence[tuple[Backend, Path]],
    *,
    parity: bool | None,
    force: bool,
    ctx: Context,
    refused: Callable[[Backend, IrlabError], None] | None = None,
) -> Generator[Emitted, None, None]:
    """`irlab.emit` for each of `outputs`, in their order, with weights read and encoded once.

    An error ends all that is not finished; with `refused`, which is told, only the output that it is about.
    """
    if not outputs:
        return
    with for_outputs(module, [backend for backend, _ in outputs], outputs[0][1].parent, ctx) as ready:
        started = [
            _Output(backend, ready if backend.readings else module, out, parity, force, ctx) for backend, out in outputs
        ]
        yield from _finished(started, ctx, refused)


def write_alone(backend: Backend, module: Module, out: Path, ctx: Context) -> None:
    """Let `backend` write a legalised module to `out`, a fresh path, and do nothing else."""
    for reading in backend.write(module, out, ctx) or ():
        read_alone(reading, ctx.jobs)


def _finished(
    outputs: Sequence[_Output], ctx: Context, refused: Callable[[Backend, IrlabError], None] | None = None
) -> Iterator[Emitted]:
    """Carry all `outputs` to their ends; they come in their order."""
    living = list(outputs)

    def advance(output: _Output) -> None:
        try:
            output.advance()
        except IrlabError as error:
            if refused is None:
                raise
            living.remove(output)
            refused(output.backend, error)

    try:
        for output in outputs:
            advance(output)
        require_space({output.out: output.bytes_needed for output in living if output.reading is not None})
        while living:
            _read([output.reading for output in living if output.reading is not None], ctx)
            for output in list(living):
                if output.reading is not None:
                    advance(output)
                while living and living[0].emitted is not None:
                    yield living.pop(0).emitted  # type: ignore[misc]
    finally:
        for output in living:
            output.steps.close()


def _read(readings: Sequence[Reading], ctx: Context) -> None:
    """Serve `readings`, with a bar."""
    total = sum(len(reading.symbols) for reading in readings)
    bar = iter(ctx.progress.track(range(total), "writing weights", total))
    read_together(readings, ctx.jobs, lambda: next(bar, None))


class _Output:
    """One output on its way: `advance` goes on to its next reading, or to its end."""

    def __init__(
        self, backend: Backend, module: Module, out: Path, parity: bool | None, force: bool, ctx: Context
    ) -> None:
        self.backend, self.out = backend, out
        self.bytes_needed = 0
        self.reading: Reading | None = None
        self.emitted: Emitted | None = None
        self.steps = self._steps(module, parity, force, ctx)
        self._clock = ctx.clock
        self._span, self._writing = Span(f"emit {backend}"), Span("write")
        ctx.clock.add(self._span)

    def advance(self) -> None:
        """Raises what goes wrong."""
        done, self.reading = self.reading, None
        if done is not None:
            for span in (self._span, self._writing):
                span.seconds += done.seconds
                span.cpu_seconds += done.cpu_seconds
        try:
            with self._clock.resumed(self._span):
                self.reading = next(self.steps)
        except StopIteration as stop:
            self.emitted = stop.value

    def _steps(
        self, module: Module, parity: bool | None, force: bool, ctx: Context
    ) -> Generator[Reading, None, Emitted]:
        backend, out, clock = self.backend, self.out, ctx.clock
        with clock.span("legalise") as legalising:
            legal = prepare_output(backend, module, out, force=force, ctx=ctx)
        _require_weights(legal)
        self.bytes_needed = backend.estimate_bytes(legal)
        beside = backend.beside(legal)
        directory = backend.is_directory(out)
        with whole_output(out, directory=directory, force=force, beside=beside) as temporary:
            clock.add(self._writing)
            with clock.resumed(self._writing):
                steps = backend.write(legal, temporary, ctx)
                reading = None if steps is None else next(steps, None)
            while steps is not None and reading is not None:
                yield reading
                with clock.resumed(self._writing):
                    reading = next(steps, None) if reading.error is None else steps.throw(reading.error)
            self._writing.weights_computed = sum(bool(symbol.recipe.inputs) for symbol in legal.weights.values())
            require_size(temporary, ctx.size_limits.get(str(backend)))
            measured = Parity(skipped="not asked for")
            if parity is not False:
                with clock.span("parity"):
                    measured = check_parity(
                        backend, legal, temporary, seed=ctx.seed, insist=bool(parity), device=ctx.device
                    )
            if parity and measured.skipped:
                raise UsageError(f"parity of {out} cannot be checked: {measured.skipped}")
            require_parity(measured, out)
        notes = tuple(legal.metadata.get("notes", ()))
        written = sum(size_bytes(path) for path in (out, *map(out.with_suffix, beside)))
        seconds = legalising.seconds + self._writing.seconds
        return Emitted(backend.name, out, written, measured, seconds, notes, backend.runtime_for(legal))


def prepare_output(backend: Backend, module: Module, out: Path, *, force: bool, ctx: Context) -> Module:
    """The module as `backend` will write it to `out`. Raises InputError, as far as types and shapes tell, for what the
    target, the place or the disk cannot hold."""
    require_writable(out, directory=backend.is_directory(out), force=force)
    legal = backend.legalise(module.clone(), ctx)
    verify(legal)
    backend.refuse(legal, out)
    for suffix in backend.beside(legal):
        require_writable(out.with_suffix(suffix), directory=False, force=force)
    require_space({out: backend.estimate_bytes(legal)})
    return legal


def _require_weights(module: Module) -> None:
    """Read a row of the smallest matrix, so that a checkpoint that is not there is said before anything is written.
    (Vectors may be tables that the frontend computed.)"""
    weights = [s for s in module.weights.values() if s.type.rank > 1 and s.type.size]
    if weights:
        finite_rows(min(weights, key=lambda symbol: symbol.size_bytes), 0, 1)
