"""The comparison of runs: collect -> group -> analyse -> render -> publish. It reads only what runs left behind."""
