"""Controllers inside of other frameworks' training loops; one module a framework."""
