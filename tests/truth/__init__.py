"""Small programs with their right values: a number is right, or an error or a warning names the cause."""
