"""Small programs with known values: a result is right, or an error or a warning names the cause."""
