"""What somebody asks for, as a vector: WordLlama, whose weights and tokenizer lie in its wheel (extra `query`; NumPy, MIT licence, nothing is downloaded)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .engine import F32, EngineError

if TYPE_CHECKING:
    from wordllama.inference import WordLlamaInference

SENTENCE_DIM = 256
MOST_CHARACTERS = 200


@cache
def _words() -> WordLlamaInference:
    try:
        import wordllama
    except ImportError as e:
        raise EngineError(f"a query in words needs WordLlama ({e.name} is missing): pip install 'voicewire[query]'") from None
    # (its own look-up of the tokenizer goes to a folder that the wheel has under another name, and would then download)
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, dim=SENTENCE_DIM, disable_download=True)


def check(text: str) -> str:
    """The text. ValueError if it is without a word, longer than 200 characters, or holds halves of characters (surrogates), as JSON may."""
    if not any(c.isalnum() for c in text) or len(text) > MOST_CHARACTERS or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"a query is a few words for a sound, like 'a dog barking', and at most {MOST_CHARACTERS} characters")
    return text


def embed(sentences: list[str]) -> F32:
    """Sentences that passed `check` → [n, 256] float32, unit length. EngineError without the package."""
    vectors: F32 = np.asarray(_words().embed([" ".join(text.lower().split()).strip(" .!?") for text in sentences], norm=True), np.float32)
    return vectors
