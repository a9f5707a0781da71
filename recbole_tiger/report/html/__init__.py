"""Pages that a browser opens from disk: the data as JSON, and a script that shows them; nothing is fetched."""
