"""From a folder of runs to statistics, and from those to a page.

::

    run_files.py ──▶ study.py ──▶ outcomes.py ──▶ analysis.py ──▶ verdict.py, caveats.py, examples.py
    one run's        tidy         seeds ×         statistics.py   tables.py, figures.py
    files            tables       questions                              │
                                                                         ▼
                                                                      page.py ──▶ report.html, report.md, data/

The statistics (``statistics.py``) are arrays in, named results out, and know of nothing else here.
"""
