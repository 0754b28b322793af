"""Metrics of a whole set: BLEU and chrF by sacreBLEU, so that figures compare with papers, and macro-F1 over labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ft_pipeline.gate.metrics.metric import Corpus, Metric
from ft_pipeline.gate.metrics.text import exact_match, plain


def bleu(*, tokenize: str = "13a") -> Metric:
    """BLEU (Post 2018, aclanthology W18-6319): of the set for the verdict, of the sentence (exp smoothing) for each row."""
    from sacrebleu.metrics.bleu import BLEU

    sentence, whole = BLEU(tokenize=tokenize, effective_order=True), BLEU(tokenize=tokenize, force=True)
    return Metric(score=lambda r, a: _share(sentence.sentence_score(a, [r])), corpus=_sacre(whole))


def chrf(*, word_order: int = 0) -> Metric:
    """chrF (Popovic 2015, aclanthology W15-3049) over character 6-grams; with `word_order` 2 it is chrF++."""
    from sacrebleu.metrics.chrf import CHRF

    found = CHRF(word_order=word_order)
    return Metric(score=lambda r, a: _share(found.sentence_score(a, [r])), corpus=_sacre(found))


def macro_f1(*, ignore_case: bool = False) -> Metric:
    """Mean F1 over the labels that the references name, each label alike; each row scores 1 when its label is right.

    An answer that is none of the labels is a miss of the right one and nothing else.
    """
    return Metric(
        score=lambda r, a: exact_match(r, a, ignore_case=ignore_case),
        corpus=Corpus(counts=lambda r, a: _confusions(r, a, ignore_case), measure=_mean_f1),
    )


def _sacre(metric: Any) -> Corpus:
    # what sacreBLEU's own significance tests draw from; it has no public name. Tested equal to corpus_score.
    return Corpus(
        counts=lambda references, answers: metric._extract_corpus_statistics(list(answers), [list(references)]),
        measure=lambda sums: _share(metric._compute_score_from_stats([round(s) for s in sums])),
    )


def _share(score: Any) -> float:
    return min(max(score.score / 100, 0.0), 1.0)


def _confusions(references: Sequence[str], answers: Sequence[str], ignore_case: bool) -> list[list[float]]:
    """Per row: [hits, answers, references] of each label, one label behind the other."""
    want = [plain(r, ignore_case) for r in references]
    place = {label: 3 * index for index, label in enumerate(sorted(set(want)))}
    rows = []
    for right, said in zip(want, (plain(a, ignore_case) for a in answers), strict=True):
        row = [0.0] * (3 * len(place))
        row[place[right]] += right == said
        row[place[right] + 2] += 1
        if said in place:
            row[place[said] + 1] += 1
        rows.append(row)
    return rows


def _mean_f1(sums: Sequence[float]) -> float:
    """Labels that a draw of the bootstrap left out count in neither arm."""
    scores = [
        2 * hits / (said + wanted)
        for hits, said, wanted in zip(sums[0::3], sums[1::3], sums[2::3], strict=True)
        if wanted
    ]
    return sum(scores) / len(scores) if scores else 0.0
