"""``make demo``: a year of real flights and weather through the whole pipeline, and proof that no row was lost.

Its files arrive one by one while a real daemon, with real sensors, stages and publishes them. Afterwards every row is
held against the source by means that share nothing with the pipeline but DuckDB.
"""
