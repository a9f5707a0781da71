"""Result files -> statistics, tables and pictures."""
