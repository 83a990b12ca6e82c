"""From a folder of runs to statistics, and from those to a page.

::

    run_files.py ─▶ study.py ─▶ outcomes.py ─▶ analysis.py ─▶ verdict.py, tables.py, figures.py ─▶ pictures.py
    one run's       tidy        seeds ×        statistics.py                 │                        │
    files           tables      questions ───▶ caveats.py, examples.py ──────┤                        │
                                                                             ▼                        ▼
                                        command.py ─────────────────────▶ page.py ─▶ report.html, report.md, data/

The statistics (``statistics.py``) are arrays in, named results out, and know of nothing else here; ``wording.py``
writes numbers and lists as people read them.
"""
