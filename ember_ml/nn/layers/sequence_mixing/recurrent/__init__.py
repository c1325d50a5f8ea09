"""Recurrent layers: a state that goes from position to position."""
