"""A loop like that of GRPO, with a stub of a model, on the store's groups, consumed marks and policy versions.

    trainer  queues 16 groups of 8 samples a step, takes groups as they are done, takes a step, publishes the weights
    runner   eight runners in a process: claim a sample, draw an answer with the latest weights, report
    demo     starts the server, the trainer and the runners, kills the trainer now and then, and checks what came of it

The runners are slow now and then, and fail now and then. ``docs/training.md`` describes what the store does about that.
"""
