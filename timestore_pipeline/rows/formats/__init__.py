"""File formats: each is one class in one file, which says all that the project knows of it."""
