"""What makes a text fit to be learnt from: rules that look at text alone."""
