"""What the demo model reads: story texts, the tokenizer trained on them, and the windows of tokens made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_LONE_LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")


def split_stories(text: str) -> list[str]:
    """Stories of a text file: parted by <|endoftext|> where it occurs, else by single line breaks (a blank line is
    then a break between paragraphs of one story)."""
    parts = text.split(END_OF_TEXT) if END_OF_TEXT in text else _LONE_LINE_BREAK.split(text)
    return [part.strip() for part in parts if part.strip()]


def train_tokenizer(stories: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's split of words (what llama.cpp calls the ``gpt-2`` pre-tokenizer); id 0 is
    <|endoftext|>, which opens every story, as BOS, and so also closes the one before, as EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


@dataclass(frozen=True)
class Corpus:
    """Stories as tokens, each u16[n] and opened by id 0, in two styles: paragraphs parted by a blank line, or not.

    Both styles are common (the TinyStories files have blank lines, story models write none), so each reading of a
    story draws one; a model that knew one only would be surprised by every paragraph of the other.
    """

    spaced: list[np.ndarray]
    plain: list[np.ndarray]
    seed: int

    @classmethod
    def encode(cls, stories: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> Corpus:
        def styled(line_break: str) -> list[np.ndarray]:
            texts = [re.sub(r"\s*\n\s*", line_break, story) for story in stories]
            return [np.array(ids, np.uint16) for ids in tokenizer(texts, verbose=False).input_ids]

        return cls(styled("\n\n"), styled("\n"), seed)

    def windows(self, length: int, epoch: int) -> np.ndarray:
        """One epoch, i.e. every story once in a random order and style, packed without gaps: u16[windows, length]."""
        rng = np.random.default_rng((self.seed, epoch))
        order, spaced = rng.permutation(len(self.plain)), rng.random(len(self.plain)) < 0.5
        stream = np.concatenate([(self.spaced if spaced[i] else self.plain)[i] for i in order])
        count = len(stream) // length
        if count == 0:
            raise ValueError(f"the text holds {len(stream)} tokens, fewer than one window of {length}; give more text")
        return rng.permutation(stream[: count * length].reshape(count, length))

    def batches(self, length: int, size: int) -> Iterator[np.ndarray]:
        """Endless batches u16[size, length]; the n-th one depends on the seed alone, so a resumed run skips to it."""
        epoch, rest = 0, np.empty((0, length), np.uint16)
        while True:
            while len(rest) < size:
                rest = np.concatenate([rest, self.windows(length, epoch)])
                epoch += 1
            yield rest[:size]
            rest = rest[size:]
