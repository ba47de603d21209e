"""Rewards for samples: functions run where they can be killed, results checked, and a fault named."""

from __future__ import annotations

from rlkit.scoring.checks import Decoder, score
from rlkit.scoring.scorer import Acted, Scorer, WeightedReward, check_judged

__all__ = ["Acted", "Decoder", "Scorer", "WeightedReward", "check_judged", "score"]
