"""Commands of the project as forks of a process that has imported torch, transformers, peft and MLflow: for tests only.

A stage spends six seconds on imports and half a second on its work when the model has two layers. The processes that
tests start here are real ones, and each has what exec would have given it: its own pid, its starter as parent, its own
session where that was asked for, its environment, working directory, file descriptors, ignored signals, command line
and exit code. Only what was imported comes with it, and of that nothing of this project: its modules are read anew.

- `popen.py` is what a process needs that starts others so: it replaces a method of subprocess.Popen.
- `server.py` is the process that is forked.

A test marked ``cold`` starts everything by exec, as a user does; so does whatever isn't sure to be the same either way
(another interpreter, other code than the project's commands, settings that libraries read when they are imported).
"""
