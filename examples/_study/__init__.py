"""The parts of study_real.py: data in memory, variants, training, evaluation, and tables."""
