"""Coverage-guided fuzzing of every entrance: see ``run.py``, and docs/security.md."""
