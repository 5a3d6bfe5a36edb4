"""From a user's table to the next batch: columns, constraints, fit, search, report."""
