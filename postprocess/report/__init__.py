"""The comparison of runs: collect -> group -> analyse -> render -> write. It reads only what runs left behind."""
