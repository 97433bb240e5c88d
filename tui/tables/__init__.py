"""The area below the charts: the step's figures, its requests, the rows of a query."""
