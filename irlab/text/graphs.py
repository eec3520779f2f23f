"""Reading graphs: inputs, ops, regions, the return.

A line is first tried as pieces that were read before (known_lines.py).
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import IrlabError
from ..ir import Graph, Loc, Op, Return, Value, Weight
from ..opdef import OPS
from ..ops import control, nn, prim
from ..ops.call import Call
from ..types import TensorType
from .attributes import admit
from .cursor import did_you_mean
from .environment import Surroundings
from .known_lines import MISFITS, read_known_line
from .operands import KEY, OperandReader
from .signatures import Operands, Signature, signature
from .sizes import MAX_DEPTH
from .values import check_type

# Importing the dialects declares their ops.
DIALECTS: Final = (prim, nn, control)

_OPNAME: Final = re.compile(r"[A-Za-z_]\w*+(?:\.\w++)*+", re.ASCII)


class GraphReader(OperandReader):
    """Reads one graph, from the parenthesis of its inputs to its closing brace, into an empty `graph`."""

    def __init__(self, around: Surroundings, graph: Graph, depth: int = 0) -> None:
        super().__init__(around, graph)
        self.depth = depth

    def read(self) -> None:
        cursor = self.cursor
        cursor.expect("(")
        while not cursor.accept(")"):
            self._input()
            if not cursor.accept(","):
                cursor.expect(")", "separate inputs by commas")
                break
        cursor.expect("{")
        cursor.skip_newline()
        text, env = cursor.text, self.env
        while True:
            end = text.find("\n", cursor.pos)
            if end > cursor.pos and read_known_line(env, text[cursor.pos : end]):
                cursor.pos = end + 1
            elif self._statement():
                return
            else:
                cursor.skip_newline()

    def _input(self) -> None:
        cursor = self.cursor
        at, token, name = self._new_name("an input, %name: type")
        cursor.expect(":", "an input is %name: type")
        type = self.values.tensor_type()
        try:
            self.env[token] = self.graph.input(name if name is not None else token[1:], type)
        except IrlabError as error:
            raise cursor.error(error.message, error.hint, at) from None

    # Statements

    def _statement(self) -> bool:
        """Read one statement; True after the one that ends the graph."""
        cursor = self.cursor
        first = cursor.peek()
        start = cursor.pos
        if first == "}":
            raise cursor.error("the graph returns nothing", "end it with: return name=%value")
        results: list[tuple[int, str, str | None]] = []
        if first == "%":
            results.append(self._new_name("a result"))
            while cursor.accept(","):
                results.append(self._new_name("a result"))
                if results[-1][1] in {token for _, token, _ in results[:-1]}:
                    raise cursor.error(f"{results[-1][1]} is defined twice", "", results[-1][0])
            cursor.expect("=", "%result = op(operands)")
            cursor.skip_space()
        at = cursor.pos
        opname = cursor.match(_OPNAME)
        if opname == "return" and not results:
            self._return()
            return True
        if opname is None:
            raise cursor.error(f"expected an op, found {cursor.next_word()}", "%result = op(operands) or return", start)
        self._op(opname, at, results)
        return False

    def _return(self) -> None:
        cursor = self.cursor
        outputs: dict[str, Value] = {}
        while cursor.peek() != "}":
            at = cursor.pos
            name = cursor.name("the name of an output, or }")
            if name in outputs:
                raise cursor.error(f"the output '{name}' is returned twice", "every output has its own name", at)
            cursor.expect("=", "return name=%value")
            value = self._operand()
            if value is None:
                raise cursor.error(f"the output '{name}' is none", "", at)
            outputs[name] = value
            if not cursor.accept(","):
                break
        cursor.expect("}", "the return is the last statement of a graph")
        self.graph.set_outputs(outputs)

    def _op(self, opname: str, at: int, results: list[tuple[int, str, str | None]]) -> None:
        cursor, text = self.cursor, self.cursor.text
        cls: type[Op] | None = OPS.get(opname)
        if cls is None or cls is Weight or cls is Return:
            raise cursor.error(
                f"unknown op '{opname}'", did_you_mean(opname, OPS, "an ATen op is: call @aten.NAME"), at
            )
        called = signature(cls)
        attributes: dict[str, Any] = {}
        if cls is Call:
            cursor.expect("@", "call @aten.NAME(operands)")
            attributes["target"] = cursor.name("the name of what is called")
        cursor.expect("(")
        callee = text[at : cursor.pos - 1]
        given = self._operands()
        attributes_text = ""
        if cursor.peek() == "{":
            opening = cursor.pos + 1
            self._attributes(called, attributes)
            attributes_text = text[opening : cursor.pos]
        stated: tuple[TensorType, ...] | None = None if results else ()
        types_text = ""
        if cursor.accept(":"):
            cursor.skip_space()
            opening = cursor.pos
            stated = self._types()
            types_text = text[opening : cursor.pos].rstrip()
        loc = self._loc()
        regions = {name: self._region(name) for name in cls.region_names}
        for name, said in called.said.items():
            if stated and name not in attributes:
                attributes[name] = said(stated)
            elif stated == () and name not in attributes and called.attributes[name].annotation.startswith("tuple"):
                attributes[name] = ()
        op = self._build(called, given, attributes | regions, stated, at)
        if len(op.results) != len(results):
            raise cursor.error(f"{opname} gives {len(op.results)} results, not {len(results)}", "", at)
        op.loc = loc
        self.graph.add(op)
        for (_, token, given_name), value in zip(results, op.results):
            value.name = given_name
            self.env[token] = value
        if stated and not regions and "{" not in attributes_text:
            self.around.calls[callee, attributes_text, types_text] = called, attributes, list(stated)

    def _build(
        self,
        called: Signature,
        given: Operands,
        fields: dict[str, Any],
        stated: tuple[TensorType, ...] | None,
        at: int,
    ) -> Op:
        cursor, opname = self.cursor, called.cls.opname
        if wrong := called.wrong_operands(given):
            raise cursor.error(f"{opname}: {wrong}", "", at)
        if (missing := called.missing(fields)) is not None:
            hint = f"write {{{missing.name}=...}} behind the operands"
            if missing.name in called.said:
                hint += ", or state the result type"
            raise cursor.error(f"{opname}: the attribute '{missing.name}' is missing", hint, at)
        try:
            op: Op = called.cls(**called.arrange(given), **fields)
        except IrlabError as error:
            raise cursor.error(error.message, error.hint, at) from None
        except MISFITS as error:
            raise cursor.error(f"{opname}: operands or attributes do not fit: {error}", "", at) from None
        types = tuple([result.type for result in op.results])
        for type in types:
            if type not in self.around.checked:
                if wrong := check_type(type):
                    raise cursor.error(f"{opname}: {wrong}", "", at)
                self.around.checked.add(type)
        if stated is not None and types != stated:
            one, other = (", ".join(map(str, t)) for t in (stated, types))
            raise cursor.error(f"{opname}: the stated type is {one}, but it gives {other}", "correct the type", at)
        return op

    def _operands(self) -> Operands:
        cursor = self.cursor
        given: Operands = []
        while not cursor.accept(")"):
            given.append(self._operand())
            if not cursor.accept(","):
                cursor.expect(")", "separate operands by commas")
                break
        return given

    def _attributes(self, called: Signature, attributes: dict[str, Any]) -> None:
        cursor = self.cursor
        cursor.expect("{")
        while not cursor.accept("}"):
            cursor.skip_space()
            at = cursor.pos
            name = cursor.match(KEY)
            field = called.attributes.get(name or "")
            if name is None or field is None:
                cursor.pos = at
                known = did_you_mean(name or "", called.attributes, f"it has: {', '.join(called.attributes) or 'none'}")
                raise cursor.error(f"{called.cls.opname} has no attribute {cursor.next_word()}", known, at)
            if name in attributes:
                raise cursor.error(f"the attribute '{name}' stands twice", "", at)
            cursor.expect("=", "attributes are written name=value")
            value = self.values.value()
            try:
                attributes[name] = admit(field.annotation, value)
            except ValueError as error:
                raise cursor.error(f"{name} of {called.cls.opname} must be {error}", "", at) from None
            if not cursor.accept(","):
                cursor.expect("}", "separate attributes by commas")
                break

    def _types(self) -> tuple[TensorType, ...]:
        # All on one line, so that a line that looks complete is.
        cursor = self.cursor
        types = [self.values.tensor_type()]
        cursor.skip_blanks()
        while cursor.text.startswith(",", cursor.pos):
            cursor.pos += 1
            types.append(self.values.tensor_type())
            cursor.skip_blanks()
        return tuple(types)

    def _loc(self) -> Loc | None:
        cursor = self.cursor
        cursor.skip_blanks()
        if not cursor.text.startswith("loc(", cursor.pos):
            return None
        cursor.pos += len("loc(")
        opening = cursor.pos
        parts: dict[str, str] = {}
        while not cursor.accept(")"):
            cursor.skip_space()
            at = cursor.pos
            name = cursor.match(KEY) or "path"
            if name not in ("path", "source", "made_by") or name in parts:
                hint = 'loc("path", source="...", made_by="...")'
                raise cursor.error(f"a location has no place for '{name}'", hint, at)
            if name != "path":
                cursor.expect("=")
            parts[name] = cursor.string()
            if not cursor.accept(","):
                cursor.expect(")")
                break
        loc = self.around.locs[cursor.text[opening : cursor.pos]] = Loc.at(**parts)
        return loc

    def _region(self, field: str) -> Graph:
        cursor = self.cursor
        cursor.skip_space()
        if self.depth >= MAX_DEPTH:
            raise cursor.error("regions are nested too deeply", f"at most {MAX_DEPTH} levels")
        word = field.rstrip("_")
        cursor.expect(word, f"the region: {word}(inputs) {{ ... }}")
        region = Graph()
        GraphReader(self.around, region, self.depth + 1).read()
        return region
