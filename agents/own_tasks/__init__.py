"""Training a controller on somebody's own tasks, from their first run to a tested policy file."""
