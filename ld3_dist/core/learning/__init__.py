"""Learning a schedule: settings, parameters, objective, and the procedures that move them."""
