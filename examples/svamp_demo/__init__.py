"""A small agent that learns to solve arithmetic word problems, trained through a lightning store.

One server process (or several, on PostgreSQL), one algorithm process and several runner processes, which know of each
other only through the store:

    algorithm  publishes the policy's weights as a resource, enqueues a batch of problems, waits, reads the spans back,
               and takes one REINFORCE step from what the store returned
    runner     claims a rollout, fetches the weights that it names, answers the problem, records OpenTelemetry spans,
               reports the end

Run it from the project's root: ``make demo``, or ``python -m examples.svamp_demo`` (``--help`` shows the flags).
Problems are generated; ``--data SVAMP.json`` takes those of SVAMP (https://github.com/arkilpatel/SVAMP, MIT licence).

Modules, each using only those above it: ``arithmetic`` (numbers in a text, what can be computed from two of them),
``problems`` (generating and loading), ``policy`` (features, softmax, gradients), ``messages`` (the resource),
``tracing`` (spans out and in), ``runner``, ``report`` (log and plot), ``algorithm``, ``processes``, ``demo``.
"""
