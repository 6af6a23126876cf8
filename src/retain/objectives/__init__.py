"""The objectives of training: modules whose forward(batch) returns a dict of named losses."""

from retain.objectives.bptt import BPTT
from retain.objectives.dmt import DMT
from retain.objectives.losses import dynamics_loss, predictive_loss, uniformity_loss
from retain.objectives.segments import rollout_from_teacher, unroll
from retain.objectives.smt import SMT

__all__ = [
    "BPTT",
    "DMT",
    "SMT",
    "dynamics_loss",
    "predictive_loss",
    "rollout_from_teacher",
    "uniformity_loss",
    "unroll",
]
