"""Deterministic simulation: the real guard, in virtual time, against a hostile model of the world.

`schedule` draws what will go wrong from a seed, `model` is the gateways, trainers and control plane
that it goes wrong in, `program` the callers above the guard, `loops` their time, `run` puts them
together for one schedule, and `invariants` says what must hold afterwards. `coverage` counts what
was really met, `shrink` makes a failing schedule small.

    python -m proof.simulation --n 100000 --jobs 2
    python -m proof.simulation --replay SEED
"""
