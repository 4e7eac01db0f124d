"""What runs inside a sandbox: the standard library and these modules are all there is."""
