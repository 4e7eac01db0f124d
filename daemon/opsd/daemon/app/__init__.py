"""The one place where the daemon's parts are put together, and the process that runs them."""
