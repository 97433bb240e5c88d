"""Many traces in one store: a DuckLake, which is Parquet in a directory or a bucket, and a catalog in a database.

`lake_name` reads how a lake is written, `lake_connection` opens one, `lake_tables` says what it holds. `push_trace` and
`pull_trace` move one trace, whole; `lake_views` answers questions about all of them; `expire_traces` removes old ones.
"""
