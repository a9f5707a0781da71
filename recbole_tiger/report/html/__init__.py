"""Pages that a browser opens from disk: data as JSON and a script that shows them, without fetching anything."""
