"""The report page of runs, and single plots for a paper. See `retain.report.page` and `retain.report.plot`."""
