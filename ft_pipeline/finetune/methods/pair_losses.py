"""The losses of a preference pair, by TRL's names (1.16, tested against it): functions of four log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from ft_pipeline.recipe import Preference

DISCOPOP_TAU = 0.05
"""arXiv 2406.08414 and TRL's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """n pairs. Log-probabilities are sums over the trained tokens of a completion, in nats."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    """The same under the reference; zeros for a loss without one."""
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def won(self) -> torch.Tensor:
        """[n] log-ratio of the chosen answer to the reference."""
        return self.chosen - self.reference_chosen

    @property
    def lost(self) -> torch.Tensor:
        """[n] log-ratio of the rejected one."""
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> torch.Tensor:
        """[n] difference of the two."""
        return self.won - self.lost

    @property
    def margin_a_token(self) -> torch.Tensor:
        """[n] difference of the log-ratios, each divided by its tokens."""
        return self.won / self.chosen_tokens - self.lost / self.rejected_tokens


PairsLoss = Callable[[Pairs, Preference], torch.Tensor]
"""[n] losses. Those of aot compare sorted pairs: they depend on which pairs share a micro-batch."""


def smoothed(margin: torch.Tensor, section: Preference) -> torch.Tensor:
    """-log sigmoid of a scaled margin, where a share of the pairs is the wrong way round (cDPO)."""
    share = section.label_smoothing
    return -logsigmoid(margin) * (1 - share) - logsigmoid(-margin) * share


def simpo(pairs: Pairs, section: Preference) -> torch.Tensor:
    """arXiv 2405.14734, equation 6: mean log-probability as the reward, and a margin that is asked for; no reference."""
    margin = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return smoothed(section.beta * margin - section.gamma, section)


def odds_ratio(pairs: Pairs, section: Preference) -> torch.Tensor:
    """arXiv 2403.07691, equation 7, from mean log-probabilities; no reference. The SFT term is added by the method."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    log_odds = (chosen - rejected) - (log_complement(chosen) - log_complement(rejected))
    return -section.beta * logsigmoid(log_odds)


def log_complement(log_probability: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    near_zero = log_probability > -math.log(2)
    # the branch that is not taken must not make a gradient of NaN
    small = torch.where(near_zero, log_probability, -1.0)
    large = torch.where(near_zero, -1.0, log_probability)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def _robust(pairs: Pairs, section: Preference) -> torch.Tensor:
    share, margin = section.label_smoothing, section.beta * pairs.margin
    return (-(1 - share) * logsigmoid(margin) + share * logsigmoid(-margin)) / (1 - 2 * share)


def _exo_pair(pairs: Pairs, section: Preference) -> torch.Tensor:
    share, margin = section.label_smoothing, section.beta * pairs.margin
    won = torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-share))
    return won + torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(share))


def _nca_pair(pairs: Pairs, section: Preference) -> torch.Tensor:
    won, lost = section.beta * pairs.won, section.beta * pairs.lost
    return -logsigmoid(won) - 0.5 * logsigmoid(-won) - 0.5 * logsigmoid(-lost)


def _bco_pair(pairs: Pairs, section: Preference) -> torch.Tensor:
    return -logsigmoid(section.beta * pairs.won) - logsigmoid(-section.beta * pairs.lost)


def _sppo_hard(pairs: Pairs, section: Preference) -> torch.Tensor:
    return (pairs.won - 0.5 / section.beta) ** 2 + (pairs.lost + 0.5 / section.beta) ** 2


def _aot(pairs: Pairs, section: Preference) -> torch.Tensor:
    ours = torch.sort(pairs.chosen - pairs.rejected)[0]
    theirs = torch.sort(pairs.reference_chosen - pairs.reference_rejected)[0]
    return smoothed(section.beta * (ours - theirs), section)


def _aot_unpaired(pairs: Pairs, section: Preference) -> torch.Tensor:
    return smoothed(section.beta * (torch.sort(pairs.won)[0] - torch.sort(pairs.lost)[0]), section)


def _apo_zero(pairs: Pairs, section: Preference) -> torch.Tensor:
    return 1 - torch.sigmoid(section.beta * pairs.won) + torch.sigmoid(section.beta * pairs.lost)


def _apo_down(pairs: Pairs, section: Preference) -> torch.Tensor:
    return torch.sigmoid(section.beta * pairs.won) + 1 - torch.sigmoid(section.beta * pairs.margin)


def _discopop(pairs: Pairs, section: Preference) -> torch.Tensor:
    margin = section.beta * pairs.margin
    share = torch.sigmoid(margin / DISCOPOP_TAU)
    return -logsigmoid(margin) * (1 - share) + torch.exp(-margin) * share


LOSSES: Mapping[str, PairsLoss] = {
    "sigmoid": lambda pairs, section: -logsigmoid(section.beta * pairs.margin),
    "sigmoid_norm": lambda pairs, section: -logsigmoid(section.beta * pairs.margin_a_token),
    "hinge": lambda pairs, section: torch.relu(1 - section.beta * pairs.margin),
    # by token, as IPO's authors confirmed to TRL
    "ipo": lambda pairs, section: (pairs.margin_a_token - 1 / (2 * section.beta)) ** 2,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
"""Losses of dpo."""
