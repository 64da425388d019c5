"""Make the text that the built-in text tasks ship: `envs/tasks/data/*.xz` and their checksums.

The sources are the message catalogues inside three PyPI packages, and Python's own help texts:

    pip install Django==5.2.19
    pip install --no-deps --target /tmp/catalogues wagtail==8.0.1 indico==3.2.9
    PYTHONPATH=/tmp/catalogues python scripts/make_text_data.py

The same versions of these and of Python give the same bytes. The tasks need none of them to run.
"""

from __future__ import annotations

import argparse
import collections
import gettext
import hashlib
import importlib.util
import itertools
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

DATA = Path(__file__).resolve().parents[1] / "envs" / "tasks" / "data"

LANGUAGES = [
    "af",
    "ca",
    "cs",
    "da",
    "de",
    "en",
    "es",
    "et",
    "fi",
    "fr",
    "hr",
    "hu",
    "it",
    "lt",
    "nb",
    "nl",
    "pl",
    "pt",
    "ro",
    "sk",
    "sl",
    "sq",
    "sv",
    "tr",
]
STRINGS_PER_LANGUAGE = 440
STRING_LENGTHS = range(12, 81)  # characters

PAIR_SOURCES = (("django", "fr"), ("wagtail", "fr"), ("indico", "fr_FR"))
ENGLISH_LENGTHS, FRENCH_LENGTHS = range(3, 41), range(2, 51)  # characters
MERGES = 440

HELP_CHARACTERS = 330_000
ASCII_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")

PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z]|\{\w*\}")
MARKUP = re.compile(r"[%{}<>\x04\n|\\]|https?:")  # tags, contexts, addresses: not language


def package_folder(package: str) -> Path:
    """Return where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; see the head of {__file__}")
    return Path(spec.submodule_search_locations[0])


def messages(package: str, locale: str) -> Iterator[tuple[str, str]]:
    """Yield (English, translated) of a package's catalogues for one locale, plurals left out."""
    for path in sorted(package_folder(package).glob(f"**/{locale}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            # The class has no public way to list its messages.
            catalogue: dict[object, object] = vars(gettext.GNUTranslations(file))["_catalog"]
        yield from sorted(
            (k, v) for k, v in catalogue.items() if isinstance(k, str) and isinstance(v, str)
        )


def plain(text: str) -> str | None:
    """Return the text with single spaces, or None when it holds markup."""
    return None if MARKUP.search(text) else " ".join(text.split())


def spread(texts: Iterable[str], count: int) -> list[str]:
    """Return `count` distinct texts in an order that depends on nothing but the texts."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def language_strings() -> dict[str, list[str]]:
    """Return strings of each language; one that occurs in two languages is in neither."""
    found: dict[str, set[str]] = {}
    for language in LANGUAGES:
        locale = "fr" if language == "en" else language
        column = 0 if language == "en" else 1
        texts = (plain(PLACEHOLDER.sub("", pair[column])) for pair in messages("django", locale))
        found[language] = {text for text in texts if text and len(text) in STRING_LENGTHS}
    owners = collections.Counter(text for texts in found.values() for text in texts)
    return {
        language: spread((t for t in texts if owners[t] == 1), STRINGS_PER_LANGUAGE)
        for language, texts in found.items()
    }


def translation_pairs() -> list[list[str]]:
    """Return short (English, French) pairs in lower case, one for each English text."""
    pairs: dict[str, str] = {}
    for package, locale in PAIR_SOURCES:
        for english, french in messages(package, locale):
            source, target = plain(english.lower()), plain(french.lower())
            if not source or not target or source == target:
                continue
            if len(source) in ENGLISH_LENGTHS and len(target) in FRENCH_LENGTHS:
                pairs.setdefault(source, target)
    return [[source, pairs[source]] for source in spread(pairs, len(pairs))]


def byte_pair_pieces(texts: Iterable[str], merges: int) -> list[str]:
    """Return the characters of the texts and `merges` pieces of words, by byte pair encoding.

    A word starts with a space. Ties between equally frequent pairs go to the smaller pair.
    """
    frequency = collections.Counter(" " + word for text in texts for word in text.split())
    words = {word: list(word) for word in sorted(frequency)}
    pieces = sorted({character for word in words for character in word})
    for _ in range(merges):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += frequency[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        pieces.append("".join(best))
        for parts in words.values():
            merge(parts, best)
    return pieces


def merge(parts: list[str], pair: tuple[str, str]) -> None:
    """Join each occurrence of the pair in a word's parts, in place."""
    index = 0
    while index < len(parts) - 1:
        if (parts[index], parts[index + 1]) == pair:
            parts[index : index + 2] = ["".join(pair)]
        index += 1


def help_text() -> str:
    """Return Python's help topics, joined in sorted order, in ASCII with single spaces."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    ascii_only = re.sub(r"[^\x20-\x7e\n]", "?", joined.translate(ASCII_QUOTES))
    ruled = re.sub(r"([-=*~^\".])\1{3,}", "", ascii_only)  # underlines of headings
    return re.sub(r" *\n\s*", "\n", re.sub(r" +", " ", ruled))[:HELP_CHARACTERS]


def write(folder: Path, contents: dict[str, str]) -> None:
    """Write the compressed files and `checksums.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    checksums: dict[str, str] = {}
    for name, text in sorted(contents.items()):
        raw = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (folder / name).write_bytes(raw)
        checksums[name] = hashlib.sha256(raw).hexdigest()
        print(f"{name}: {len(text):,} characters, {len(raw):,} bytes")
    (folder / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n")


def main() -> None:
    """Make all files."""
    parser = argparse.ArgumentParser(description="Make the text of the text tasks.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    out: Path = parser.parse_args().out
    pairs = translation_pairs()
    pieces = byte_pair_pieces((text for pair in pairs for text in pair), MERGES)
    strings = language_strings()
    print({language: len(texts) for language, texts in strings.items()}, len(pairs), "pairs")
    write(
        out,
        {
            "language_id.json.xz": json.dumps(strings, ensure_ascii=False),
            "translation.json.xz": json.dumps(
                {"pieces": pieces, "pairs": pairs}, ensure_ascii=False
            ),
            "char_lm.txt.xz": help_text(),
        },
    )


if __name__ == "__main__":
    main()
