"""Who samples the student's answers: this process, the serving engine, or one in the pool."""
