"""Parts of study_real.py."""
