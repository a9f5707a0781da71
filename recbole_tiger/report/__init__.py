"""Statistics, tables, pictures and pages of result files."""
