"""Whether a text answers a problem, decided in processes that can be killed."""
