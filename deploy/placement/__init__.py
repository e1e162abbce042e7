"""Which targets form a chain: a pure planner. `plan` makes chains for new disks, `replan` changes members of existing ones.

A chain's members lie in different failure domains, every disk takes members by its capacity, and any two nodes share as few chains as
possible: when a node fails, each of the others then has about as much to copy (a balanced incomplete block design, as in 3FS).
"""

from .description import read_description
from .model import Chain, Disk, Domain, Figures, InfeasibleError, Move, Plan, Request
from .plan import plan
from .replan import replan

__all__ = [
    "Chain",
    "Disk",
    "Domain",
    "Figures",
    "InfeasibleError",
    "Move",
    "Plan",
    "Request",
    "plan",
    "read_description",
    "replan",
]
