"""Everything that the stack promises, proven on stacks of the tests' own."""
