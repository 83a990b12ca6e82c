"""Arms × seeds under one budget.

::

    comparison file      comparison_file.py   arms, seeds, base: read and checked
          │
    plan                 plan.py              every arm's whole configuration; equal budgets, or refused
          │
    comparison.yaml      record.py            what the runs were run with, so that nothing else is added to them
          │
    processes            runner.py            a fit for each arm and seed, interrupted and gone on with (progress.py)
          │
    records              run/                 what each run leaves: a record per question, events, run.json
          │
    statistics, page     report/              read back, compared pairwise, drawn and written

``command.py`` is the subcommand around it.
"""
