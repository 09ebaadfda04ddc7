"""Words of every script, for ROUGE: rouge-score's own tokenizer keeps a to z and 0 to 9 and loses all others."""

from __future__ import annotations

import unicodedata

import regex
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

NAME = "unicode-words-1"
"""Stands in every result; another number for other words, so that nobody compares two scores of different ones."""
RULES = "letters and digits of every script, English stemmed; single characters where a script has no spaces"

# Written without spaces between words (UAX 14, class SA, and East Asia's). Tibetan isn't: it has a mark for that.
_NO_SPACES = "".join(
    rf"\p{{Script={script}}}"
    for script in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Tangut", "Nushu"),
        *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
    )
)
# U+30FC, which lengthens a vowel of kana, is of no script. Numbers stay whole in every script.
_CHARACTER = rf"[[{_NO_SPACES}\u30fc]&&\p{{L}}]"
_WORD = regex.compile(rf"{_CHARACTER}\p{{M}}*|(?:(?!{_CHARACTER})[\p{{L}}\p{{N}}]\p{{M}}*)+", regex.V1)
# Joiners, soft hyphens, marks of direction: inside words, and never seen. The zero-width space ends a word.
_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]", regex.V1)
_SYMBOLS = regex.compile(r"\p{S}", regex.V1)


def words(text: str) -> list[str]:
    """The words of a text in order, without case. Marks stay with their letter, and equal text that is composed in
    another way (accents, full-width forms) gives equal words."""
    # Normalizing would make letters of some symbols, which then belonged to the word before: of "Foo™" "footm".
    text = unicodedata.normalize("NFKC", _SYMBOLS.sub(" ", text))
    text = unicodedata.normalize("NFKC", text.casefold())
    return [match.group() for match in _WORD.finditer(_UNSEEN.sub("", text))]


class UnicodeWords(Tokenizer):
    """Of ASCII text exactly what rouge-score's default tokenizer makes of it, stemmed."""

    def __init__(self) -> None:
        self._english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words; those of ASCII letters are stemmed by Porter's rules for English."""
        found: list[str] = []
        for word in words(text):
            found += self._english.tokenize(word) if word.isascii() else [word]
        return found
