"""How do the tensors of a quantised checkpoint become an encoded weight again?"""

from __future__ import annotations

from dataclasses import dataclass

from ..encodings import Codes
from ..errors import InputError
from ..types import TensorType
from .recipe import AnyArray, Recipe, static_shape


@dataclass(frozen=True)
class Unpack(Recipe):
    """The encoded matrix behind the tensors `sources` of the form called `form` (irlab/layouts), in its order."""

    of: TensorType
    form: str
    sources: tuple[Recipe, ...]

    @property
    def type(self) -> TensorType:
        return self.of

    @property
    def row_local(self) -> bool:
        return False

    def codes(self, start: int, stop: int) -> Codes:
        from ..layouts import FORMS

        if self.form not in FORMS:
            raise InputError(f"matrices lie in no form called '{self.form}'", f"one of {', '.join(FORMS)}")
        form, encoding, shape = FORMS[self.form], self.of.encoding, static_shape(self.of)
        assert encoding is not None
        tensors = dict(zip(form.types(encoding, shape), (source.read() for source in self.sources)))
        codes = form.unpack(encoding, shape, tensors)
        # As stored codes are: what no such encoding has is refused.
        checked = encoding.unpack(encoding.pack(codes), shape[-1])
        return {part: values[start:stop] for part, values in checked.items()}

    def rows(self, start: int, stop: int) -> AnyArray:
        assert self.of.encoding is not None
        return self.of.encoding.decode(self.codes(start, stop))
