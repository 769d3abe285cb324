"""A load test of a running server: tenants, shapes and objectives are data, locust drives, a report says what was seen.

`python -m loadtest --help`; docs/loadtest.md.
"""
