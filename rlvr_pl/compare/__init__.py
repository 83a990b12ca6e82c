"""Arms × seeds under one budget: the plan, the runs, the statistics and the report."""
