"""What an engine must offer to carry EmberTensors."""
