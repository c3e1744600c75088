"""Questions with known answers: tasks, metrics, runs and reports."""
