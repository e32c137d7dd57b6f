"""What `make docs` makes from the code: the reference pages, the dashboard. It is no part of what is installed."""
