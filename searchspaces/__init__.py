"""The search spaces that come with raynas, and presets: experiments ready to run."""
