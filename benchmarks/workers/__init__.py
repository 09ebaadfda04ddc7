"""One training framework each, run by the Python of that framework's own environment: `python WORKER.py JOB.json`.

They import nothing of this project but workers/common.py, which needs only the standard library.
"""
