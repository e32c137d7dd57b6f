"""DuckDB: instances and connections, with what they may reach and use."""
