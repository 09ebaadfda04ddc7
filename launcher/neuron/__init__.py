"""What a run on Neuron needs from the launcher: environment, checks, and the settings that its graphs follow from."""
