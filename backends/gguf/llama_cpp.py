"""What does the real llama.cpp make of a GGUF file: its logits, greedy tokens, tokenisation, speed, complaints?

llama.cpp runs in a child process (`llama_worker`), because it aborts on failed assertions; a death of the child is an
exception here, with the end of its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from irlab.backends.gguf.library import llama_library
from irlab.children import end
from irlab.errors import InputError

_LOG_TAIL_LINES = 12


class LlamaCppError(InputError):
    """llama.cpp refused a file or a request, or died over it. The message ends with its own words."""


class LlamaCpp:
    """llama.cpp in one child process, which keeps the last model loaded. A context manager; usable from one thread.

        with LlamaCpp() as runtime:
            tokens = runtime.tokenize("model.gguf", "Once upon a time")
            logits = runtime.logits("model.gguf", tokens)

    threads: threads of llama.cpp. timeout_seconds: longest time of one request, after which the child is killed.
    Raises InputError if no llama.cpp is installed.
    """

    def __init__(self, *, threads: int = 2, timeout_seconds: float = 600) -> None:
        self._threads = threads
        self._timeout_seconds = timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._timed_out = False
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        library = llama_library()
        if library is None:
            raise InputError("no llama.cpp is installed to run GGUF files", "pip install xllamacpp")
        self._library = library

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child. The next request starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            end(child)

    def version(self) -> str:
        """llama.cpp's version, such as '0.6.0-dev'."""
        return str(self._ask("hello")["version"])

    def logits(
        self, path: str | Path, tokens: Sequence[int], *, adapter: Path | None = None
    ) -> npt.NDArray[np.float32]:
        """The logits after each token: f32[tokens, vocab], computed with an f32 cache and without flash attention.

        `adapter`: a LoRA adapter to run the model with, here and below."""
        self._require_tokens(tokens)
        self._load(path, adapter=adapter)
        header = self._ask("logits", tokens=[int(token) for token in tokens])
        out = np.empty((header["rows"], header["columns"]), np.float32)
        self._read_into(out.data.cast("B"))
        return out

    def greedy(
        self,
        path: str | Path,
        tokens: Sequence[int],
        count: int,
        *,
        stop_at_end: bool = False,
        adapter: Path | None = None,
    ) -> list[int]:
        """The `count` tokens that greedy decoding appends to `tokens`. stop_at_end: fewer if an end token comes."""
        self._require_tokens(tokens)
        self._load(path, adapter=adapter)
        answer = self._ask("greedy", tokens=[int(t) for t in tokens], count=count, stop_at_end=stop_at_end)
        return list(answer["tokens"])

    def tokenize(
        self, path: str | Path, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`. add_special: with BOS and EOS where the file asks for them. Loads no weights."""
        self._load(path, vocab_only=True)
        return list(self._ask("tokenize", text=text, add_special=add_special, parse_special=parse_special)["tokens"])

    def detokenize(self, path: str | Path, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`; special: with control tokens written out. Loads no weights."""
        self._load(path, vocab_only=True)
        return str(self._ask("detokenize", tokens=[int(token) for token in tokens], special=special)["text"])

    def speed(
        self,
        path: str | Path,
        *,
        prefill: int = 128,
        decode: int = 64,
        repeats: int = 3,
        seconds: float = 0.0,
        adapter: Path | None = None,
        processor: bool = False,
    ) -> dict[str, float]:
        """Median tokens per second, `{"prefill": ..., "decode": ...}`, of a prompt and a continuation this long, with
        llama.cpp's default settings; over `repeats`, and over more until `seconds` have passed. `processor`: seconds
        are of processor time, of all threads."""
        self._load(path, adapter=adapter)
        answer = self._ask(
            "speed", prefill=prefill, decode=decode, repeats=repeats, seconds=seconds, processor=processor
        )
        return {"prefill": answer["prefill"], "decode": answer["decode"]}

    def _load(self, path: str | Path, *, vocab_only: bool = False, adapter: Path | None = None) -> None:
        for file in (path, adapter):
            if file is not None and not Path(file).is_file():
                raise LlamaCppError(f"{file}: no such file")
        beside = "" if adapter is None else str(adapter.absolute())
        path = str(Path(path).absolute())
        self._ask("load", path=path, vocab_only=vocab_only, threads=self._threads, adapter=beside)

    @staticmethod
    def _require_tokens(tokens: Sequence[int]) -> None:
        if len(tokens) == 0:
            raise LlamaCppError("llama.cpp needs at least one token to start from")

    def _ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        child = self._running()
        assert child.stdin and child.stdout
        with self._deadline(child):
            try:
                child.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                raise self._death() from None
            line = child.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LlamaCppError(_sentence(answer["error"], answer["log"]))
        return answer

    def _read_into(self, target: memoryview) -> None:
        child = self._running()
        assert child.stdout
        filled = 0
        with self._deadline(child):
            while filled < len(target):
                count = child.stdout.readinto(target[filled:])  # type: ignore[attr-defined]
                if not count:
                    raise self._death()
                filled += count

    @contextmanager
    def _deadline(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        def end() -> None:
            self._timed_out = True
            child.kill()

        self._timed_out = False
        timer = threading.Timer(self._timeout_seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._log.seek(0)
            self._log.truncate()
            # -I: neither the caller's PYTHONPATH nor the folder of this file (with its tokenizer.py) shadows a module.
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("llama_worker.py")), str(self._library)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                # Spinning OpenMP threads cost up to nine tenths of the speed on a shared machine.
                env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(self._threads)},
            )
        return self._child

    def _death(self) -> LlamaCppError:
        child = self._child
        assert child
        status = child.wait()
        self.close()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        if self._timed_out:
            how = f"did not answer within {self._timeout_seconds:g} seconds"
        elif status < 0:
            how = f"died of {signal.Signals(-status).name}"
        else:
            how = f"exited with status {status}"
        return LlamaCppError(_sentence(f"llama.cpp {how}", lines[-_LOG_TAIL_LINES:]))


def _sentence(message: str, log: Sequence[str]) -> str:
    return f"{message}: {' | '.join(log)}" if log else message
