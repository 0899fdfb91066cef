"""The operators' pages: what was asked, what became of it, and what they may do about it.

Rows are read-only except the limits and shares of lanes and pools: statuses, counters and leases
are the product's to write. What an operator has done to a row is a `Command`, which goes through
`batches.lifecycle` or `batches.pools` like everybody else's wish. Tables grow to millions of
rows, so nothing here counts or sorts a whole one, and every search is a lookup in an index.
"""
