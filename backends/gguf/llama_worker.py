"""What the child process of `llama_cpp.LlamaCpp` runs: llama.cpp behind a pipe.

Started as `python -I llama_worker.py LIBRARY`. It needs the standard library alone. Requests arrive as JSON lines on
stdin; each is answered on stdout by one JSON line, followed by the raw f32 rows that the line announces. llama.cpp
aborts its process on a failed assertion, so nothing else may live here.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

_I8, _I32, _U32, _P = ctypes.c_int8, ctypes.c_int32, ctypes.c_uint32, ctypes.c_void_p
_BATCH_TOKENS = 256
_LOG_LEVEL_WARN = 3  # ggml_log_level
_F32, _F16 = 0, 1  # ggml_type


class _Params(ctypes.Structure):
    """A params struct of llama.h, passed by value. Its fields move between versions, so it is a block of bytes, larger
    than any of them; on the platforms llama.cpp runs on, the callee reads only the bytes it knows."""

    _fields_ = [("words", ctypes.c_uint64 * 64)]

    def word(self, offset: int) -> int:
        return _I32.from_buffer(self, offset).value

    def set_word(self, offset: int, value: int) -> None:
        _I32.from_buffer(self, offset).value = value


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", _I32), ("token", _P), ("embd", _P), ("pos", _P), ("n_seq_id", _P), ("seq_id", _P), ("logits", _P),
    ]  # fmt: skip


# Byte offsets in llama_context_params and llama_model_params (llama.cpp 0.5 and 0.6); the values that the defaults
# must show there, checked before any of them is written.
_N_CTX, _N_BATCH, _N_UBATCH, _FLASH_ATTENTION, _TYPE_K, _TYPE_V = 0, 4, 8, 52, 104, 108
_CONTEXT_DEFAULTS = {_N_CTX: 512, _N_BATCH: 2048, _N_UBATCH: 512, _FLASH_ATTENTION: -1, _TYPE_K: _F16, _TYPE_V: _F16}
_MODEL_FLAGS = 72  # vocab_only, check_tensors, use_extra_bufts, no_host: one byte each
_MODEL_DEFAULTS = {_MODEL_FLAGS: 0x00010000}

_SIGNATURES: dict[str, tuple[Any, ...]] = {  # name: (result, arguments...)
    "llama_backend_init": (None,),
    "llama_log_set": (None, _P, _P),
    "llama_version": (ctypes.c_char_p,),
    "llama_model_default_params": (_Params,),
    "llama_context_default_params": (_Params,),
    "llama_model_load_from_file": (_P, ctypes.c_char_p, _Params),
    "llama_model_free": (None, _P),
    "llama_model_get_vocab": (_P, _P),
    "llama_model_n_ctx_train": (_I32, _P),
    "llama_adapter_lora_init": (_P, _P, ctypes.c_char_p),
    "llama_set_adapters_lora": (_I32, _P, _P, ctypes.c_size_t, _P),
    "llama_init_from_model": (_P, _P, _Params),
    "llama_free": (None, _P),
    "llama_set_n_threads": (None, _P, _I32, _I32),
    "llama_get_memory": (_P, _P),
    "llama_memory_clear": (None, _P, ctypes.c_bool),
    "llama_decode": (_I32, _P, _Batch),
    "llama_get_logits_ith": (_P, _P, _I32),
    "llama_vocab_n_tokens": (_I32, _P),
    "llama_vocab_is_eog": (ctypes.c_bool, _P, _I32),
    "llama_tokenize": (_I32, _P, ctypes.c_char_p, _I32, _P, _I32, ctypes.c_bool, ctypes.c_bool),
    "llama_detokenize": (_I32, _P, _P, _I32, _P, _I32, ctypes.c_bool, ctypes.c_bool),
    "llama_sampler_init_greedy": (_P,),
    "llama_sampler_sample": (_I32, _P, _P, _I32),
}
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _P)


class _Source(NamedTuple):
    """Which file is loaded: a file rewritten under the same name is another."""

    path: str
    inode: int
    modified_ns: int
    size: int


def _source(path: str) -> _Source:
    status = os.stat(path)
    return _Source(path, status.st_ino, status.st_mtime_ns, status.st_size)


class Failure(Exception):
    """Reported to the parent as the answer of this request."""


class Llama:
    """One loaded model at a time, and the requests that can be made of it."""

    def __init__(self, library: str, answer: BinaryIO) -> None:
        self._lib = ctypes.CDLL(library)
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._answer = answer
        self._warnings: list[str] = []
        self._log = _LOG_CALLBACK(self._on_log)
        self._lib.llama_log_set(ctypes.cast(self._log, _P), None)
        self._lib.llama_backend_init()
        self._loaded: list[_Source] = []
        self._adapter = 0
        self._vocab_only = False
        self._model = 0
        self._threads = 2

    def _on_log(self, level: int, text: bytes, _: object) -> None:
        # The parent reads stderr for its tail if this process dies.
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()
        if level >= _LOG_LEVEL_WARN and text.strip():
            self._warnings.append(text.decode(errors="replace").strip())

    # Requests. Each method's arguments are the fields of its JSON line; its result is the JSON answer.

    def hello(self) -> dict[str, Any]:
        return {"version": self._lib.llama_version().decode()}

    def load(self, path: str, vocab_only: bool, threads: int, adapter: str = "") -> dict[str, Any]:
        self._threads = threads
        source = [_source(file) for file in (path, adapter) if file]
        if self._loaded != source or (self._vocab_only and not vocab_only):
            self._unload()
            params = self._lib.llama_model_default_params()
            _require_layout(params, _MODEL_DEFAULTS, "llama_model_params")
            params.set_word(_MODEL_FLAGS, params.word(_MODEL_FLAGS) | (1 if vocab_only else 0x100))
            model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
            if not model:
                raise Failure("llama.cpp could not load the file")
            self._model, self._loaded, self._vocab_only = model, source, vocab_only
            # Freed with the model.
            self._adapter = self._lib.llama_adapter_lora_init(model, os.fsencode(adapter)) if adapter else 0
            if adapter and not self._adapter:
                self._unload()
                raise Failure("llama.cpp could not load the adapter")
        return {"vocab_size": self._vocab_size(), "context": self._lib.llama_model_n_ctx_train(self._model)}

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> dict[str, Any]:
        data = text.encode()
        room = len(data) + 16
        out = (_I32 * room)()
        count = self._lib.llama_tokenize(self._vocab(), data, len(data), out, room, add_special, parse_special)
        if count < 0:
            raise Failure(f"llama_tokenize needs {-count} tokens for {len(data)} bytes")
        return {"tokens": list(out[:count])}

    def detokenize(self, tokens: list[int], special: bool) -> dict[str, Any]:
        ids = self._checked(tokens)
        room = 64 * len(tokens) + 64
        out = ctypes.create_string_buffer(room)
        count = self._lib.llama_detokenize(self._vocab(), ids, len(ids), out, room, False, special)
        if count < 0:
            out = ctypes.create_string_buffer(-count)
            count = self._lib.llama_detokenize(self._vocab(), ids, len(ids), out, -count, False, special)
        return {"text": out.raw[:count].decode(errors="replace")}

    def logits(self, tokens: list[int]) -> None:
        """Answers with one row of f32[vocab] per token."""
        ids, width = self._checked(tokens), self._vocab_size()
        with self._context(len(ids), exact=True) as context:
            self._reply({"rows": len(ids), "columns": width})
            for start in range(0, len(ids), _BATCH_TOKENS):
                chunk = ids[start : start + _BATCH_TOKENS]
                try:
                    self._decode(context, chunk, start, every=True)
                except Failure as failure:  # rows are already promised: all that is left is to die with the reason
                    sys.exit(str(failure))
                for row in range(len(chunk)):
                    address = self._lib.llama_get_logits_ith(context, row)
                    self._answer.write((ctypes.c_float * width).from_address(address))
            self._answer.flush()

    def greedy(self, tokens: list[int], count: int, stop_at_end: bool) -> dict[str, Any]:
        ids = self._checked(tokens)
        out: list[int] = []
        sampler = self._lib.llama_sampler_init_greedy()
        with self._context(len(ids) + count, exact=True) as context:
            self._prefill(context, ids)
            while len(out) < count:
                token = self._lib.llama_sampler_sample(sampler, context, -1)
                if stop_at_end and self._lib.llama_vocab_is_eog(self._vocab(), token):
                    break
                out.append(token)
                if len(out) < count:
                    self._decode(context, [token], len(ids) + len(out) - 1, every=False)
        return {"tokens": out}

    def speed(self, prefill: int, decode: int, repeats: int, seconds: float, processor: bool) -> dict[str, Any]:
        """Medians over `repeats` of tokens per second, after one unmeasured round; over more until `seconds` passed."""
        clock = time.process_time if processor else time.perf_counter
        prompt = [index % self._vocab_size() for index in range(1, prefill + 1)]
        rates: dict[str, list[float]] = {"prefill": [], "decode": []}
        with self._context(prefill + decode, exact=False) as context:
            begun, rounds = clock(), 0
            while rounds <= repeats or clock() - begun < seconds:
                self._lib.llama_memory_clear(self._lib.llama_get_memory(context), True)
                started = clock()
                self._prefill(context, prompt)
                prefilled = clock()
                for step in range(decode):
                    self._decode(context, [prompt[step % prefill]], prefill + step, every=False)
                done = clock()
                if rounds:
                    rates["prefill"].append(prefill / (prefilled - started))
                    rates["decode"].append(decode / (done - prefilled))
                rounds += 1
        return {name: statistics.median(values) for name, values in rates.items()}

    # Pieces of the above.

    def _vocab(self) -> int:
        return int(self._lib.llama_model_get_vocab(self._model))

    def _vocab_size(self) -> int:
        return int(self._lib.llama_vocab_n_tokens(self._vocab()))

    def _checked(self, tokens: list[int]) -> Any:
        size = self._vocab_size()
        for token in tokens:
            if not 0 <= token < size:  # llama.cpp would abort or read past its tables
                raise Failure(f"token {token} is outside the vocabulary of {size}")
        return (_I32 * len(tokens))(*tokens)

    @contextmanager
    def _context(self, tokens: int, *, exact: bool) -> Iterator[int]:
        """A context for `tokens` positions. exact: with an f32 cache and plain attention, which a tiny f32 Llama
        matches to 1e-6; with the defaults (f16 cache, flash attention in f16) the same logits are 2e-3 off."""
        params = self._lib.llama_context_default_params()
        _require_layout(params, _CONTEXT_DEFAULTS, "llama_context_params")
        settings = {_N_CTX: tokens, _N_BATCH: _BATCH_TOKENS, _N_UBATCH: _BATCH_TOKENS}
        if exact:
            settings |= {_FLASH_ATTENTION: 0, _TYPE_K: _F32, _TYPE_V: _F32}
        for offset, value in settings.items():
            params.set_word(offset, value)
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise Failure("llama.cpp could not create a context")
        try:
            self._lib.llama_set_n_threads(context, self._threads, self._threads)
            if self._adapter:
                adapters, scales = (_P * 1)(self._adapter), (ctypes.c_float * 1)(1.0)
                if self._lib.llama_set_adapters_lora(context, adapters, 1, scales):
                    raise Failure("llama.cpp did not take the adapter")
            yield context
        finally:
            self._lib.llama_free(context)

    def _prefill(self, context: int, ids: Any) -> None:
        for start in range(0, len(ids), _BATCH_TOKENS):
            self._decode(context, ids[start : start + _BATCH_TOKENS], start, every=False)

    def _decode(self, context: int, tokens: list[int], position: int, *, every: bool) -> None:
        """Runs the tokens at `position`...; logits of every token, or of the last."""
        count = len(tokens)
        ids = (_I32 * count)(*tokens)
        positions = (_I32 * count)(*range(position, position + count))
        sequence = (_I32 * 1)(0)
        sequence_counts = (_I32 * count)(*[1] * count)
        sequences = (_P * count)(*[ctypes.addressof(sequence)] * count)
        wanted = (_I8 * count)(*([1] * count if every else [0] * (count - 1) + [1]))
        arrays: tuple[ctypes.Array[Any], ...] = (positions, sequence_counts, sequences, wanted)
        batch = _Batch(count, ctypes.addressof(ids), None, *[ctypes.addressof(array) for array in arrays])
        status = self._lib.llama_decode(context, batch)
        if status:
            raise Failure(f"llama_decode returned {status}")

    def _unload(self) -> None:
        if self._loaded:
            self._lib.llama_model_free(self._model)
            self._loaded = []

    # The conversation.

    def _reply(self, message: dict[str, Any]) -> None:
        self._answer.write(json.dumps(message).encode() + b"\n")
        self._answer.flush()

    def serve(self, requests: BinaryIO) -> None:
        for line in requests:
            request = json.loads(line)
            self._warnings.clear()
            try:
                message = getattr(self, request.pop("op"))(**request)
            except Failure as failure:
                message = {"error": str(failure), "log": self._warnings[-8:]}
            if message is not None:
                self._reply(message)


def _require_layout(params: _Params, expected: dict[int, int], name: str) -> None:
    for offset, value in expected.items():
        if params.word(offset) != value:
            raise Failure(f"this build of llama.cpp lays out {name} in a way that irlab does not know")


def main() -> None:
    """Serves until stdin closes. stdout carries answers only: what C code prints there goes to stderr."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Llama(sys.argv[1], answer).serve(sys.stdin.buffer)
    answer.flush()
    os._exit(0)  # skip the C++ destructors of a library that expects to live in a server


if __name__ == "__main__":
    main()
