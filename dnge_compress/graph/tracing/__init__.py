"""Reading a module by running it: its layers, which of their axes go together, and the proof that they may go."""
