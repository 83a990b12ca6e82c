"""A policy in parts: every rank holds its share of each weight, gradient and moment.

::

    weights.py    what is cut into parts, and how it is whole again for a forward pass, a rollout or a file
    strategy.py   Lightning's ModelParallelStrategy with checkpoints in one file, and which strategies cannot work
"""
