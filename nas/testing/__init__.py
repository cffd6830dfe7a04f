"""What every plug-in must keep, as suites of small checks: those that raynas holds its own spaces, recipes, searches,
tasks and costs to.

One file a kind. Each has ``CHECKS``, plain functions over the thing itself, which raise `AssertionError` with both
numbers. A check's docstring is the contract: its first line says what must hold, the rest where to look when it does
not. ``nas check my_module:thing`` runs them; a test of your own does so with `nas.testing.suite.outcomes`.
"""
