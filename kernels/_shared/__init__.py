"""Code that several kernel families share: checks, dispatch, operators, tiles, tables, random numbers."""
