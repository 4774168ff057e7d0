"""The claims that a report judges, each registered by the file that judges it."""

from experiments.report.claims import errors, signals, transfer, variants
from experiments.report.claims.registry import Claim, Judgement, all_claims, judge

__all__ = ["Claim", "Judgement", "all_claims", "errors", "judge", "signals", "transfer", "variants"]
