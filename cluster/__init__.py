"""Submit, follow and stop a run on a Ray cluster."""
