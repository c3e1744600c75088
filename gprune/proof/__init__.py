"""Proves on this machine that pruning a model does what is claimed, and nothing else."""

from gprune.proof.cases import Case, make_case
from gprune.proof.families import prove_family
from gprune.proof.prove import CLAIMS, claim_names, prove
from gprune.proof.results import FamilyProof, Result, Verdict

__all__ = [
    "CLAIMS",
    "Case",
    "FamilyProof",
    "Result",
    "Verdict",
    "claim_names",
    "make_case",
    "prove",
    "prove_family",
]
