"""What someone who may drop files, name things or send queries must not be able to do."""
