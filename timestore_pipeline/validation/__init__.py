"""A load in a dataset of its own, which shows that an installation keeps what it promises."""
