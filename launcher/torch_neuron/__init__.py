"""What a run of the torch engine on Trainium 2 and 3 (AWS TorchNeuron) needs from the launcher: its environment, what
is refused, and the libraries that it takes."""
