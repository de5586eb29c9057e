"""Snapshots in buckets: what lies where in a bucket, how it gets there and back, and when it is removed.

`repository` is the door: the snapshots below one URL. How a database is copied and replaced is in `durability`, which
knows only directories. Only `store` knows obstore, the library that speaks to buckets. Called by `manager` and `cli`.
"""
