"""Properties that hold for any size, any component and any input, tested by Hypothesis."""
