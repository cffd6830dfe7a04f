"""Search: ask for candidates, tell what came of them, keep a journal. Imports numpy alone."""

from nas.search.core import Budget, Exhausted, Objective, Search, check_budget, resume
from nas.search.evolution import Evolution
from nas.search.factory import SEARCHERS, searcher
from nas.search.journal import Candidate, Journal, Record
from nas.search.pareto import crowding, dominates, front, hypervolume, ranks
from nas.search.random import Random

__all__ = [
    "SEARCHERS",
    "Budget",
    "Candidate",
    "Evolution",
    "Exhausted",
    "Journal",
    "Objective",
    "Random",
    "Record",
    "Search",
    "check_budget",
    "crowding",
    "dominates",
    "front",
    "hypervolume",
    "ranks",
    "resume",
    "searcher",
]
