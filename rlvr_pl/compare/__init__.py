"""Arms × seeds under one budget: the runs, the statistics and the report."""
