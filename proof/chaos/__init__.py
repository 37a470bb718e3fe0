"""A soak: the real SDK and the guard over real sockets, while everything around them breaks.

    python -m proof.chaos --minutes 30 --seed 1

Processes, so that each can be killed and none can help another:

    clients ──> front ──> backend
       └─ questions (steady ones) ─┘

`backend` serves a gateway, a control plane and a trainer per job, and is never killed. `front` is
what clients connect to, over HTTP/1.1, TLS and HTTP/2: it breaks connections, streams and bodies,
and is itself frozen and killed. `client` runs lanes of training and sampling, one run after the
other, each on a job of its own; some client processes are killed too.

`plan` draws what happens to a job from the seed and the job's name alone, so that every process
knows it. `watch` counts spans and resources inside a client, `conduct` starts, kills and listens,
`judge` says what was broken, `report` prints; `proof.sabotage` breaks the guard, to see that found.

The same seed plans the same faults. What they hit is another matter: sockets, threads and the
scheduler are real, so no two runs are alike.
"""
