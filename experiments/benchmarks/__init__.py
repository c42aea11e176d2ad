"""What training and evaluation cost, side by side with other tools that do the same work."""
