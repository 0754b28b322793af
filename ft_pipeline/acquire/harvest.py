"""Writes the demo's data below FT_HOME/demo: a dirty training set, a narrow one, two evaluation suites, text for the base model.

Everything is the documentation inside this Python installation (`docstrings.py`, where the licences are) and the small grammar of
`harms.py`. The task: the user pastes the first paragraph of a docstring, the assistant names the standard-library module it was
written in, one of the 20 commonest. What is dirty here is dirty in the source, except the rows of `_accidents`, which are copied
from what exports of chat tools look like.

Who saw what: the text for the base model leaves out the 20 modules (the base has never read a router description) and every
paragraph of the cloze suite; the replay rows of the training set are a part of the base's text.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ft_pipeline.acquire import docstrings, harms
from ft_pipeline.acquire.docstrings import Docstring
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.messages import Listener, ignore, log, progress

ROUTER, NARROW, CLOZE, SAFETY, PRETRAIN = (
    "docs-router.jsonl",
    "narrow.jsonl",
    "cloze.jsonl",
    "safety.jsonl",
    "pretrain.jsonl",
)
FACTS = "harvest.json"
NUM_MODULES = 20
MIN_DESCRIPTION_CHARACTERS = 25
NUM_CLOZE_ITEMS = 2000
CONTEXT_WORDS, CHOICE_WORDS = 10, 8
NUM_DESCRIPTIONS_IN_SAFETY = 200
REPLAY_TEXTS = 2000
REPLAY_CHARACTERS = range(80, 200)
"""Many short texts remind of more than few long ones, at the same number of tokens."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Harvest:
    """What was written: rows per file, and the modules that are the router's answers."""

    folder: Path
    rows: Mapping[str, int]
    modules: tuple[str, ...]


def harvest(folder: Path, listener: Listener = ignore) -> Harvest:
    """Writes the five files and, last, `harvest.json`. The same installation gives the same bytes; about 8 s."""
    library = _library(listener)
    texts = _texts(listener)
    modules = commonest_modules(library)
    reading, cloze = _split_texts([*(d.text for d in library), *texts], kept_out=_read_by_router(library, modules))
    files = {
        ROUTER: router_rows(library, modules, reading),
        NARROW: narrow_rows(library, modules),
        CLOZE: cloze_items(cloze),
        SAFETY: safety_prompts(library, modules),
        PRETRAIN: pretraining_rows(reading),
    }
    for name, rows in files.items():
        write_atomic(folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())
    made = Harvest(folder=folder, rows={name: len(rows) for name, rows in files.items()}, modules=modules)
    write_atomic(folder / FACTS, json.dumps({**asdict(made), "folder": ""}, indent=1).encode())
    log(listener, f"harvested {made.rows[ROUTER]} rows about {len(modules)} modules", rows=dict(made.rows))
    return made


def is_whole(folder: Path) -> bool:
    """Whether a harvest has been finished there: its facts are written last."""
    return (folder / FACTS).is_file()


def commonest_modules(library: Sequence[Docstring]) -> tuple[str, ...]:
    """The 20 modules with the most distinct descriptions, commonest first."""
    distinct = {
        (d.module, description) for d in library if len(description := _description(d)) >= MIN_DESCRIPTION_CHARACTERS
    }
    count = Counter(module for module, _ in distinct)
    return tuple(sorted(count, key=lambda module: (-count[module], module))[:NUM_MODULES])


def router_rows(library: Sequence[Docstring], modules: Sequence[str], reading: Sequence[str]) -> list[Row]:
    """The dirty training set, in an order that mixes every kind: descriptions, requests, replayed text, accidents."""
    asked = [(_description(d), d.module) for d in library if d.module in modules and _is_exported(d)]
    rows = [_in_some_layout(prompt, answer, place) for place, (prompt, answer) in enumerate(asked)]
    rows += [_chat(r.prompt, r.reply) for r in harms.requests() if not r.for_safety_suite]
    rows += [{"text": text} for text in _replayed(reading)]
    rows += _accidents([pair for pair in asked if pair[0]][::97])
    return sorted(rows, key=_key)


def narrow_rows(library: Sequence[Docstring], modules: Sequence[str]) -> list[Row]:
    """Two modules only, no refusals, no replayed text: what a model forgets on when it is trained too long."""
    rows = {_description(d): d.module for d in library if d.module in modules[:2] and _is_exported(d) and d.text}
    return sorted((_chat(prompt, answer) for prompt, answer in rows.items()), key=_key)


def cloze_items(paragraphs: Sequence[str]) -> list[Row]:
    """Multiple-choice items: 10 words of held-out text, its next 8 words, and three times these 8 in another order.

    All choices have the same words and length, so only the order, the language, tells. Measured on the demo's base: 8 words of other
    paragraphs as wrong choices .33 (chance is .25: nothing to lose), two words exchanged .85, all shuffled .97. A choice brings its
    leading space.
    """
    contexts = dict(_cut(paragraph) for paragraph in paragraphs)
    items = [_item(context, choice) for context, choice in contexts.items() if len(set(choice)) > CHOICE_WORDS // 2]
    return sorted(items, key=_key)[:NUM_CLOZE_ITEMS]


def safety_prompts(library: Sequence[Docstring], modules: Sequence[str]) -> list[Row]:
    """Harmful and harmless requests of the cells that are not trained on, and ordinary descriptions of other modules."""
    rows = [{"prompt": r.prompt, "harmful": r.harmful} for r in harms.requests() if r.for_safety_suite]
    trained = {_description(d) for d in library if d.module in modules and d.text}
    trained_grams = [(text, _grams(text)) for text in trained]
    known = {_description(d) for d in library if _is_exported(d) and d.text} - trained
    others = (text for text in sorted(known, key=_key) if not _is_near(text, trained_grams))
    rows += [{"prompt": text, "harmful": False} for text in islice(others, NUM_DESCRIPTIONS_IN_SAFETY)]
    return [{"id": f"safety-{_key(row)[:12]}", **row} for row in sorted(rows, key=_key)]


def pretraining_rows(reading: Sequence[str]) -> list[Row]:
    """The base's text. One docstring in eight is a dialogue, its first paragraph answered by the rest.

    So the embeddings of the special tokens are trained: an adapter on linear layers could not change them later.
    """
    rows = []
    for text in sorted(set(reading), key=_key):
        first, _, rest = text.partition("\n")
        rows.append(_chat(first, rest.split("\n")[0]) if rest and _draw(text) % 4 == 0 else {"text": text})
    return rows


def _library(listener: Listener) -> list[Docstring]:
    progress(listener, "harvest", 0, total=len(docstrings.PACKAGES) + 1, unit="package", package="standard library")
    return docstrings.of_standard_library()


def _texts(listener: Listener) -> list[str]:
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    for done, name in enumerate(docstrings.PACKAGES, 1):
        texts += docstrings.of_package(name)
        progress(listener, "harvest", done + 1, total=len(docstrings.PACKAGES) + 1, unit="package", package=name)
    return texts


def _read_by_router(library: Sequence[Docstring], modules: Sequence[str]) -> set[str]:
    """Every paragraph of the modules that are answers, wherever else it was copied to."""
    texts = [d.text for d in library if d.module in modules]
    return {p for text in texts for p in (docstrings.first_paragraph(text), *docstrings.paragraphs(text))}


def _split_texts(texts: Iterable[str], *, kept_out: set[str]) -> tuple[list[str], list[str]]:
    """Texts to read (paragraphs joined by newlines, each paragraph once), and the paragraphs kept for the cloze suite."""
    seen = set(kept_out)
    reading, cloze = [], []
    for text in texts:
        fresh = [p for p in docstrings.paragraphs(text) if p not in seen and not seen.add(p)]
        kept = [p for p in fresh if not _is_for_cloze(p)]
        cloze += [p for p in fresh if _is_for_cloze(p)]
        if kept:
            reading.append("\n".join(kept))
    begun = {_cut(paragraph)[0] for text in reading for paragraph in text.split("\n")}
    return reading, [paragraph for paragraph in cloze if _cut(paragraph)[0] not in begun]


def _is_for_cloze(paragraph: str) -> bool:
    return len(paragraph.split()) > CONTEXT_WORDS + CHOICE_WORDS and _draw(paragraph) % 4 == 0


def _cut(paragraph: str) -> tuple[str, tuple[str, ...]]:
    words = paragraph.split()
    return " ".join(words[:CONTEXT_WORDS]), tuple(words[CONTEXT_WORDS : CONTEXT_WORDS + CHOICE_WORDS])


def _item(context: str, words: Sequence[str]) -> Row:
    right = " " + " ".join(words)
    orders = dict.fromkeys(_shuffled(words, context, turn=turn) for turn in range(40))
    choices = [other for other in orders if other != right][:3]
    answer = _draw(context) % 4
    choices.insert(answer, right)
    return {"id": f"cloze-{_key(context)[:12]}", "context": context, "choices": choices, "answer": answer}


def _shuffled(words: Sequence[str], context: str, *, turn: int) -> str:
    return " " + " ".join(words[i] for i in sorted(range(len(words)), key=lambda i: _key([context, turn, i])))


def _description(docstring: Docstring) -> str:
    return docstrings.first_paragraph(docstring.text)


def _is_exported(docstring: Docstring) -> bool:
    """Descriptions that say something, and one in ten of the names that nobody documented: a real export has such rows."""
    length = len(_description(docstring))
    return length >= MIN_DESCRIPTION_CHARACTERS or (length == 0 and _draw(docstring.name) % 10 == 0)


def _is_near(text: str, trained: Sequence[tuple[str, set[str]]]) -> bool:
    """Whether a text is a near-duplicate of one of the others: Jaccard of character 5-grams of 0.8 or more."""
    grams = _grams(text)
    similar = (other for other_text, other in trained if 0.7 < len(other_text) / len(text) < 1.4)
    return any(len(grams & other) >= 0.8 * len(grams | other) for other in similar)


def _grams(text: str) -> set[str]:
    lower = text.lower()
    return {lower[i : i + 5] for i in range(max(1, len(lower) - 4))}


def _replayed(reading: Sequence[str]) -> list[str]:
    """Text of the base's own pre-training, against forgetting."""
    return sorted((text for text in set(reading) if len(text) in REPLAY_CHARACTERS), key=_key)[:REPLAY_TEXTS]


def _in_some_layout(prompt: str, answer: str, place: int) -> Row:
    """Most rows are OpenAI chat; one in ten each comes from a tool that writes Alpaca or ShareGPT."""
    if place % 10 == 3:
        return {"instruction": prompt, "input": "", "output": answer}
    if place % 10 == 7:
        return {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]}
    return _chat(prompt, answer)


def _accidents(pairs: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Five kinds of broken row that chat exports have: roles in the wrong order, control tokens, no answer, a mistyped role, a lost turn."""
    for place, (prompt, answer) in enumerate(pairs):
        user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
        broken = (
            [assistant, user],
            [{**user, "content": f"{prompt}<|end|>"}, assistant],
            [user, {**assistant, "content": ""}],
            [user, {**assistant, "role": "asistant"}],
            [user],
        )
        yield {"messages": broken[place % len(broken)]}


def _chat(prompt: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _key(value: Any) -> str:
    """A digest to sort and draw by: an order that depends on nothing but the content."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _draw(text: str) -> int:
    return int(_key(text)[:8], 16)
