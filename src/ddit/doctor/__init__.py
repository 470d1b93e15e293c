"""What a machine can do for this package, checked part by part; `ddit doctor` prints it."""
