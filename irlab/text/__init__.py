"""IR text: what a module looks like to a reader, and how it is read back.

    irlab 1
    module "name" {licence="mit"}

    @norm.weight : bf16[64] = file("model.safetensors", "norm.weight")

    graph(%x: bf16[batch, 64]) {
      %0 = nn.rms_norm(%x, @norm.weight) {eps=1e-05} : bf16[batch, 64]  loc("model.norm")
      return y=%0
    }

    module    = "irlab" 1  "module" STRING [{NAME = value, ...}]  {weight}  "graph" graph
    weight    = @NAME : type = recipe                 recipe = WORD(value or recipe, ..., WORD=value, ...)
    graph     = (%NAME: type, ...) { {op} "return" NAME=operand, ... }
    op        = [%NAME, ... =] callee(operand, ...) [{WORD=value, ...}] [: type, ...] [loc] {WORD graph}
    callee    = WORD.WORD | "call" @NAME              loc = loc(STRING, source=STRING, made_by=STRING)
    operand   = %NAME | @NAME | DTYPE(number) | none
    type      = DTYPE[size, ...] | encoding[size, ...]
    value     = number | STRING | true | false | none | DTYPE | type | encoding | size | [value, ...] | {value: value}

A NAME that is not a plain word is a STRING. Weights and constants of rank 0 stand where they are used. Left out are
attributes that equal their default, required ones that repeat the result type (the shape of a reshape), and operands
missing at the end; text written by hand may leave out types. Comments are `# ...`, and lines that begin with `//`.

    words.py       names, quotes, reserved words         cursor.py       white space, tokens, error positions
    attributes.py  values as text, what may be left out  sizes.py        text -> sizes
    recipes.py     weight recipes as expressions         values.py       text -> types, lists, recipes, any value
    printer.py     module -> text                        signatures.py   how op classes are called
    environment.py what names mean in a graph            operands.py     text -> operands
    known_lines.py text -> ops, the quick way            graphs.py       text -> graph
                                                         parser.py       text -> module
"""

from __future__ import annotations

from .parser import parse_module
from .printer import excerpt, print_graph, print_module, printed_values

__all__ = ["excerpt", "parse_module", "print_graph", "print_module", "printed_values"]
