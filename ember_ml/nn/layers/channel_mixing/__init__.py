"""Channel mixers: layers that treat each position alone."""
