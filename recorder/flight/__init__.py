"""A flight recorder: a recording of which only the last minutes stay, until a trigger keeps them as a trace."""
