import trainer.lean_imports  # (before whatever imports transformers' models)
import trainer.lean_peft  # noqa: F401 (before whatever imports peft)
